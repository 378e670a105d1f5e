/// @file
/// Whether networks and autoencoders have the same latents.
#pragma once

#include <tstitch/model/autoencoder.hpp>
#include <tstitch/model/network_info.hpp>

#include <string>

#include "strict.hpp"

/// What a decoder or an encoder must be for a network, and is not: "must take 4 channels for 'latent', got 16".
/// @param decodes else it encodes
/// @returns nothing where it suits. Latents of scale 1 suit any network: tiny autoencoders are trained on latents as
/// diffusion networks know them, and say so.
inline std::string latents_mismatch(tstitch::NetworkInfo const& network, tstitch::AutoencoderInfo const& autoencoder,
                                    bool decodes) {
  const std::string of = " for " + in_quotes(network.name) + ", got ";
  if (autoencoder.latent_channels != network.channels) {
    return std::string(decodes ? "must take " : "must make ") + std::to_string(network.channels) + " channels" + of +
           std::to_string(autoencoder.latent_channels);
  }
  const bool same =
      network.latent_scale == autoencoder.latent_scale && network.latent_shift == autoencoder.latent_shift;
  const bool any = autoencoder.latent_scale == 1 && autoencoder.latent_shift == 0;
  if (network.latent_scale == 0 || same || any) return "";
  const auto text = [](auto const& side, auto const& other) {
    return "scale " + tstitch::words::scale_and_shift(side.latent_scale, side.latent_shift, other.latent_scale,
                                                      other.latent_shift, " and shift ");
  };
  return "must have latents of " + text(network, autoencoder) + of + text(autoencoder, network);
}
