/// @file
/// What arguments and networks do that one may not expect, a sentence each.
#pragma once

#include <tstitch/model/network.hpp>
#include <tstitch/plan/plan.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"

using Notes = std::vector<std::string>;

/// How much work two networks are beside each other: the products of a transformer's blocks, of which there are as many
/// as tokens.
/// @returns nothing where one does not say its shape
inline std::optional<double> relative_cost(tstitch::NetworkInfo const& a, tstitch::NetworkInfo const& b) {
  const auto products = [](tstitch::NetworkInfo const& info) {
    const double width = double(info.architecture.width), patch = double(info.architecture.patch_size);
    return patch > 0 ? double(info.height) * double(info.width) / (patch * patch) * width * width *
                           double(info.architecture.depth)
                     : 0;
  };
  if (!(products(a) > 0 && products(b) > 0)) return {};
  return products(a) / products(b);
}

inline void note_order(Notes& notes, std::vector<tstitch::NetworkInfo> const& infos) {
  if (infos.size() < 2) return;
  const std::optional<double> cost = relative_cost(infos.front(), infos.back());
  if (!cost || !(*cost > 1)) return;
  char times[32];
  std::snprintf(times, sizeof times, "%.3g", *cost);
  notes.push_back("--model: " + in_quotes(infos.front().name) + " comes first and costs about " + times +
                  " times as much as " + in_quotes(infos.back().name) + "; the small network is to be the first");
}

inline void note_classes(Notes& notes, Arguments const& arguments, tstitch::NetworkInfo const& info,
                         std::size_t drawn) {
  if (!arguments.classes.empty() || std::int64_t(drawn) >= info.num_classes) return;
  notes.push_back("--class: not given, draws " + std::to_string(drawn) + " of " + std::to_string(info.num_classes) +
                  " classes; name others, or all");
}

/// What a scale does that is none of the usual; empty where it is.
inline std::string guidance_note(double scale, bool consistency_model) {
  const std::string text = "--guidance " + tstitch::words::text(scale);
  if (scale < 0) return text + " leads away from the class or prompt; no guidance is 1 here";
  if (scale == 0) return text + " draws as if there were no class or prompt; no guidance is 1 here";
  if (scale < 1) return text + " is between no class or prompt, 0, and no guidance, 1";
  if (scale > 30) return text + " is far above the usual 1.5 to 15";
  if (consistency_model && scale > 2) {
    return text + " is much for a latent consistency model, which has guidance in it: usual are 1 to 2";
  }
  return "";
}

/// @param with_null a condition that has a null counterpart; empty: none has
inline void note_guidance(Notes& notes, Arguments const& arguments, tstitch::Guidance const& guidance,
                          std::string const& with_null) {
  std::vector<double> const& scales = guidance.scale.values();
  if (!with_null.empty() && std::ranges::all_of(scales, [](double scale) { return scale == 1; })) {
    notes.push_back("--guidance is 1" +
                    std::string(arguments.guidance.empty() ? ", for the last network recommends no other" : "") + "; " +
                    in_quotes(with_null + ".null") + " has no effect");
  }
  for (const double scale : scales) {
    const std::string note = guidance_note(
        scale, arguments.profile == "diffusers-lcm" || (arguments.profile.empty() && arguments.sampler == "lcm"));
    if (!note.empty() && std::ranges::count(notes, note) == 0) notes.push_back(note);
  }
}

/// @param wanted the shares of the steps that are asked for, one a network; empty: others than shares are
/// @param whole the plan, of a strength of 1
inline void note_shares(Notes& notes, std::vector<double> const& wanted, tstitch::Plan const& whole,
                        tstitch::Plan const& plan, std::vector<tstitch::NetworkInfo> const& infos) {
  const std::vector<int> of_whole = whole.calls(infos.size());
  const std::vector<int> calls = plan.calls(infos.size());
  for (std::size_t k = 0; k < infos.size(); ++k) {
    if (calls[k] > 0 || (!wanted.empty() && wanted[k] == 0)) continue;
    notes.push_back(in_quotes(infos[k].name) + " takes none of the " + std::to_string(plan.steps.size()) + " steps" +
                    (of_whole[k] > 0  ? ": its steps are noisier ones, which --strength leaves out"
                     : wanted.empty() ? ""
                                      : ": its share of " + tstitch::words::text(wanted[k]) + " rounds to 0"));
  }
}
