/// @file
/// Classes by their names, as people write them.
#pragma once

#include <tstitch/model/network.hpp>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "strict.hpp"

/// "GOLDEN retriever" as "golden retriever": letters of ASCII only.
inline std::string in_lower_case(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  return text;
}

/// What ImageNet's names have between commas: "tench, Tinca tinca" is both.
inline std::vector<std::string> synonyms(std::string_view name) {
  std::vector<std::string> words;
  for (std::string const& part : split(name, ',')) {
    std::string_view word = part;
    while (word.starts_with(' ')) word.remove_prefix(1);
    while (word.ends_with(' ')) word.remove_suffix(1);
    if (!word.empty()) words.emplace_back(word);
  }
  return words;
}

/// The least number of characters that are put in, left out or changed between two texts (Levenshtein 1966).
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t(0));
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

/// The few names that are the nearest to what was written, of those that are near: up to about half of it is wrong.
inline std::vector<std::string> nearest_names(std::string const& written, std::vector<std::string> const& names) {
  struct Candidate {
    std::size_t distance;
    std::string name;
  };
  constexpr std::size_t longest = 60;  // of what is compared
  const std::string wanted = in_lower_case(written.substr(0, longest));
  std::vector<Candidate> near;
  for (std::string const& name : names) {
    for (std::string const& word : synonyms(name)) {
      const std::string known = in_lower_case(word.substr(0, longest));
      // A part of a name is as near as a letter that is wrong.
      const bool part = wanted.size() > 2 && known.find(wanted) != std::string::npos;
      const std::size_t distance = part ? 1 : edit_distance(wanted, known);
      if (distance <= wanted.size() / 2) near.push_back({distance, word});
    }
  }
  std::stable_sort(near.begin(), near.end(),
                   [](Candidate const& a, Candidate const& b) { return a.distance < b.distance; });
  std::vector<std::string> nearest;
  for (Candidate const& each : near) {
    const std::string name = in_quotes(each.name);
    if (nearest.size() == 3) break;
    if (std::find(nearest.begin(), nearest.end(), name) == nearest.end()) nearest.push_back(name);
  }
  return nearest;
}

/// The classes that have this name: whole or as one of its synonyms, in any case where none is in this one.
inline std::vector<std::int64_t> labels_named(std::string const& written, tstitch::NetworkInfo const& info) {
  const auto found = [&](auto same) {
    std::vector<std::int64_t> labels;
    for (std::size_t i = 0; i < info.class_names.size(); ++i) {
      if (same(info.class_names[i])) labels.push_back(std::int64_t(i));
    }
    return labels;
  };
  const std::string lower = in_lower_case(written);
  const auto whole = [&](std::string const& name) { return name == written; };
  const auto part = [&](std::string const& name) { return std::ranges::count(synonyms(name), written) > 0; };
  const auto whole_in_any_case = [&](std::string const& name) { return in_lower_case(name) == lower; };
  const auto part_in_any_case = [&](std::string const& name) {
    return std::ranges::count(synonyms(in_lower_case(name)), lower) > 0;
  };
  std::vector<std::int64_t> labels = found(whole);
  if (labels.empty()) labels = found(part);
  if (labels.empty()) labels = found(whole_in_any_case);
  if (labels.empty()) labels = found(part_in_any_case);
  return labels;
}

/// The class that a name or a number means, see `labels_named`.
/// @throws std::invalid_argument for what is neither, and for a name that several classes have
inline std::int64_t label_of(std::string const& written, tstitch::NetworkInfo const& info) {
  const std::vector<std::int64_t> labels = labels_named(written, info);
  if (labels.size() == 1) return labels[0];
  if (labels.size() > 1) {
    throw std::invalid_argument("--class: must name one class, got " + in_quotes(written) + ", which is " +
                                std::to_string(labels[0]) + " and " + std::to_string(labels[1]));
  }
  const std::optional<std::int64_t> number = number_of<std::int64_t>(written);
  if (number && *number >= 0 && *number < info.num_classes) return *number;
  std::string message = "--class: must be a number in [0, " + std::to_string(info.num_classes - 1) + "]";
  constexpr std::size_t listed = 20;
  std::vector<std::string> near;
  if (!info.class_names.empty() && info.class_names.size() <= listed) {
    std::vector<std::string> names;
    for (std::string const& name : info.class_names) names.push_back(in_quotes(name));
    message += " or one of " + joined(names);
  } else if (!info.class_names.empty()) {
    message += " or the name of one of the " + std::to_string(info.class_names.size()) + " classes";
    if (!number) near = nearest_names(written, info.class_names);
  }
  message += ", got " + in_quotes(written);
  if (!near.empty()) message += "; did you mean " + joined(near) + "?";
  throw std::invalid_argument(message);
}

/// The classes that are drawn, each once; empty for networks without.
/// @param written names and numbers, also several with commas between where that is no name; "all", in any case, is
/// each; none: all, or of more ten, evenly spread
/// @throws std::invalid_argument as `label_of`, for any where the network takes none, and for more beside "all"
inline std::vector<std::int64_t> labels_of(std::vector<std::string> const& written, tstitch::NetworkInfo const& info) {
  if (!written.empty() && info.num_classes == 0) {
    throw std::invalid_argument("--class: this network takes no class, got " + in_quotes(written[0]));
  }
  std::vector<std::int64_t> labels;
  const bool all = std::ranges::any_of(written, [](std::string const& name) { return in_lower_case(name) == "all"; });
  if (all && written.size() > 1) {
    throw std::invalid_argument("--class: all must stand alone, got it among " + std::to_string(written.size()));
  }
  if (written.empty() || all) {
    const std::int64_t count = all ? info.num_classes : std::min<std::int64_t>(info.num_classes, 10);
    for (std::int64_t i = 0; i < count; ++i) labels.push_back(i * info.num_classes / count);
    return labels;
  }
  for (std::string const& name : written) {
    if (name.find(',') == name.npos || !labels_named(name, info).empty()) {
      labels.push_back(label_of(name, info));
      continue;
    }
    for (std::string part : split(name, ',')) {
      part.erase(0, part.find_first_not_of(' '));
      part.erase(part.find_last_not_of(' ') + 1);
      labels.push_back(label_of(part, info));
    }
  }
  return labels;
}
