/// @file
/// What a network file of the tests says of itself: keys without "tstitch/", and values.
#pragma once

#include <map>
#include <string>

using Metadata = std::map<std::string, std::string>;

/// A network of eps on [3, 8, 8] that was trained on the linear schedule, with these entries changed or added.
inline Metadata network_metadata(Metadata changes = {}) {
  changes.merge(Metadata{{"format", "1"},
                         {"name", "tiny"},
                         {"input_channels", "3"},
                         {"input_height", "8"},
                         {"input_width", "8"},
                         {"prediction", "epsilon"},
                         {"timestep_type", "int64"},
                         {"noise_schedule", "linear"},
                         {"num_train_timesteps", "1000"},
                         {"beta_start", "0.0001"},
                         {"beta_end", "0.02"}});
  return changes;
}

/// Likewise of a network on the cosine schedule whose x is of one shape, "3 8 8", or of any sizes at some places,
/// "3 * *".
inline Metadata metadata_of_shape(std::string const& shape, Metadata changes = {}) {
  changes.merge(Metadata{{"format", "1"},
                         {"name", "open"},
                         {"input_shape", shape},
                         {"prediction", "epsilon"},
                         {"timestep_type", "int64"},
                         {"noise_schedule", "cosine"},
                         {"num_train_timesteps", "1000"}});
  return changes;
}
