/// @file
/// What a folder says of itself that has all that a prompt takes: networks, text encoders and a decoder, and how they
/// go together. examples/export/export_pipeline.py writes such folders; pipeline.hpp loads them.
///
/// The folder's pipeline.txt is UTF-8 text, a key and its value a line, with a space between. Lines that begin with #
/// and empty ones say nothing. Files lie in the folder; behind their names stands the fingerprint that they had when
/// the folder was written, 16 hexadecimal digits, or nothing. Required keys are marked *.
///
///     tstitch pipeline 1 *              the first line
///     name *
///     network * FILE [FINGERPRINT]      in the order of use, a line each
///     text_encoder FILE [FINGERPRINT]   likewise; before the fingerprint of the second and the next may stand beside
///                                       (default) or behind: where its states go beside those of the encoders before;
///                                       or apart PREFIX: it and the next give what one network alone takes, by names
///                                       that begin so. A file may be there twice
///     fill NAME SIZES                   with zeros, what texts are smaller than this: "text_embedding 333 4096"
///     condition NAME VALUES             what else networks take, one row: numbers, height or width of the picture in
///                                       pixels, or height/width: "size_ids height width 0 0 height width"
///     null NAME VALUES                  the same in the half of guidance without the prompt, where it differs
///     given NAME                        what each request brings, such as the picture that a ControlNet sees
///     decoder, encoder FILE [FINGERPRINT]
///     shape SIZES                       of x where networks leave sizes open: "16 128 128"
///     profile, steps, guidance          as in the networks' own metadata, which they take the place of; guidance is
///                                       one scale or one for each network
///     ratio                             share of the steps for the first of two networks (default 0.4)
///     routing                           how networks share the steps (default stitch), "timestep:875"
///     negative                          what guidance leads away from where nothing else is said
///     license, measured                 for people; may repeat
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/error.hpp"
#include "../base/text.hpp"
#include "../model/condition.hpp"
#include "../model/text_encoder.hpp"
#include "../plan/by_name.hpp"
#include "../tensor/host_tensor.hpp"
#include "fingerprint.hpp"
#include "text_file.hpp"

namespace tstitch {

/// A condition that is known from the size of the picture.
struct SizeCondition {
  std::string name;                      ///< "size_ids"
  std::vector<std::string> values = {};  ///< numbers, "height", "width", "height/width"
  std::vector<std::string> null = {};    ///< without the prompt; empty: the same
};

/// A folder's pipeline.txt. Files are paths: the folder and a name.
struct PipelineInfo {
  struct TextEncoder {
    std::string file;
    bool behind = false;      ///< those before it of its prefix; else beside them
    std::string prefix = {};  ///< of the names of what it gives
  };

  std::string name = {};
  std::vector<std::string> networks = {};  ///< in the order of use
  std::vector<TextEncoder> text_encoders = {};
  std::vector<ConditionInfo> filled = {};      ///< see filled_up
  std::vector<SizeCondition> conditions = {};  ///< that the networks take beside what the text encoders give
  std::vector<std::string> given = {};         ///< names of conditions that requests bring
  std::string decoder = {}, encoder = {};      ///< empty: none
  std::vector<std::int64_t> shape = {};        ///< [C, ...] of x; empty: what the networks state
  std::string profile = {};                    ///< empty, and 0 steps: what the last network recommends
  int steps = 0;
  std::vector<double> guidance = {};  ///< empty: what the last network recommends
  double ratio = 0.4;
  std::string routing = "stitch";
  std::optional<std::string> negative = {};
  std::string license = {};
  std::vector<std::string> measured = {};

  /// Whether the routing has boundaries, "timestep:875", and no ratio; a ratio that is asked for takes its place.
  bool has_boundaries() const { return routing.find(':') != std::string::npos; }
};

namespace detail {

inline constexpr FileKind pipeline_file{"read_pipeline_info", "a folder with the pipeline.txt of export_pipeline.py"};
inline constexpr auto pipeline_magic = "tstitch pipeline 1";

struct PipelineKey {
  std::string_view name;
  bool repeats = false;
};
inline constexpr std::array pipeline_keys = std::to_array<PipelineKey>({
    {"name"},
    {"network", true},
    {"text_encoder", true},
    {"fill", true},
    {"condition", true},
    {"null", true},
    {"given", true},
    {"decoder"},
    {"encoder"},
    {"shape"},
    {"profile"},
    {"steps"},
    {"guidance"},
    {"ratio"},
    {"routing"},
    {"negative"},
    {"license", true},
    {"measured", true},
});

/// Reads a pipeline.txt line by line.
class PipelineReader {
 public:
  explicit PipelineReader(std::filesystem::path folder) : folder_(std::move(folder)), path_(folder_ / "pipeline.txt") {
    std::error_code error;
    if (!std::filesystem::is_directory(folder_, error)) {
      refuse_file(pipeline_file, quoted(folder_.string()),
                  std::filesystem::exists(folder_, error) ? "a file" : "nothing");
    }
    if (!std::filesystem::exists(path_, error))
      refuse_file(pipeline_file, quoted(folder_.string()), "a folder without");
    const std::string all = read_text(pipeline_file, path_.string(), std::size_t(1) << 20);
    if (!is_utf8(all)) throw std::runtime_error(place() + "must be UTF-8, got other bytes");
    lines_ = split(all, '\n');
  }

  PipelineInfo read() {
    if (lines_[0] != pipeline_magic) fail("must be '" + std::string(pipeline_magic) + "'", lines_[0]);
    for (number_ = 2; number_ <= lines_.size(); ++number_) {
      std::string const& line = lines_[number_ - 1];
      if (line.empty() || line[0] == '#') continue;
      if (printable(line, line.size()) != line) fail("must be text without control characters", line);
      const std::size_t space = std::min(line.find(' '), line.size());
      const std::string key = line.substr(0, space), value = line.substr(std::min(space + 1, line.size()));
      const auto is_it = [&, wanted = key](PipelineKey const& each) { return each.name == wanted; };
      const auto known = std::find_if(pipeline_keys.begin(), pipeline_keys.end(), is_it);
      if (known == pipeline_keys.end()) fail("must begin with a key that there is", line);
      if (value.empty() && key != "negative" && key != "license") fail("must have a value", line);
      if (!known->repeats && count(key) > 0) fail("must be there once", line);
      seen_.push_back(key);
      take(key, value);
    }
    number_ = 0;
    for (char const* const key : {"name", "network"}) {
      if (count(key) == 0) throw std::runtime_error(place() + "must have a line '" + key + "', got none");
    }
    const std::size_t networks = info_.networks.size();
    if (info_.guidance.size() > 1 && info_.guidance.size() != networks) {
      throw std::runtime_error(place() + "guidance must be one scale, or one for each of the " +
                               std::to_string(networks) + " networks, got " + std::to_string(info_.guidance.size()));
    }
    for (std::string const& each : nulls_without_condition()) {
      throw std::runtime_error(place() + "null must be of a condition, got " + in_quotes(each));
    }
    return info_;
  }

 private:
  std::size_t count(std::string const& key) const { return std::size_t(std::count(seen_.begin(), seen_.end(), key)); }

  std::string place() const {
    return "tstitch::read_pipeline_info: " + quoted(path_.string()) +
           (number_ > 0 ? ", line " + std::to_string(number_) : "") + ": ";
  }
  [[noreturn]] void fail(std::string const& rule, std::string const& got) const {
    throw std::runtime_error(place() + rule + ", got " + in_quotes(printable(got)));
  }

  void take(std::string const& key, std::string const& value) {
    if (key == "name") {
      info_.name = value;
    } else if (key == "network") {
      info_.networks.push_back(file(split(value, ' ')));
    } else if (key == "text_encoder") {
      std::vector<std::string> words = split(value, ' ');
      const std::string how = words.size() > 1 ? words[1] : "";
      std::string prefix = info_.text_encoders.empty() ? "" : info_.text_encoders.back().prefix;
      if (how == "behind" || how == "beside" || how == "apart") {
        if (info_.text_encoders.empty()) fail("must have an encoder before it", value);
        words.erase(words.begin() + 1);
        if (how == "apart") {
          if (words.size() < 2) fail("must have a prefix behind apart", value);
          prefix = words[1];
          words.erase(words.begin() + 1);
        }
      }
      info_.text_encoders.push_back({file(words), how == "behind", prefix});
    } else if (key == "decoder" || key == "encoder") {
      (key == "decoder" ? info_.decoder : info_.encoder) = file(split(value, ' '));
    } else if (key == "fill") {
      const auto [name, sizes] = name_and_words(value);
      info_.filled.push_back({name, numbers<std::int64_t>(sizes, 1, std::int64_t(1) << 32)});
    } else if (key == "condition" || key == "null") {
      take_condition(key, value);
    } else if (key == "given") {
      if (value.find(' ') != std::string::npos) fail("must be one name", value);
      if (std::count(info_.given.begin(), info_.given.end(), value) > 0) fail("must be there once for a name", value);
      info_.given.push_back(value);
    } else if (key == "shape") {
      info_.shape = numbers<std::int64_t>(split(value, ' '), 1, std::int64_t(1) << 32);
    } else if (key == "guidance") {
      info_.guidance = numbers<double>(split(value, ' '), 0, 1000);
    } else if (key == "ratio") {
      info_.ratio = numbers<double>({value}, 0, 1)[0];
    } else if (key == "steps") {
      info_.steps = numbers<int>({value}, 1, 1'000'000)[0];
    } else if (key == "routing") {
      try {
        read_routing(value);
      } catch (std::invalid_argument const&) {
        fail("must have a routing that there is: " + routings_text(routings()), value);
      }
      info_.routing = value;
    } else if (key == "profile") {
      info_.profile = value;
    } else if (key == "negative") {
      info_.negative = value;
    } else if (key == "license") {
      info_.license += (info_.license.empty() ? "" : "\n") + value;
    } else {
      info_.measured.push_back(value);
    }
  }

  /// The path of a file beside this one, whose fingerprint is the one that is stated.
  /// @param words the file's name, and perhaps its fingerprint
  std::string file(std::vector<std::string> const& words) const {
    std::string const& name = words[0];
    const bool plain = !name.empty() && name[0] != '.' && name.find_first_of("/\\") == std::string::npos;
    if (!plain || words.size() > 2)
      fail("must be the name of a file in the folder, and its fingerprint", joined(words));
    std::string path = (folder_ / name).string();
    std::error_code error;
    if (!std::filesystem::exists(path, error)) fail("must be a file that is there", name);
    if (words.size() < 2) return path;
    if (words[1].size() != 16 || words[1].find_first_not_of("0123456789abcdef") != std::string::npos) {
      fail("must have a fingerprint of 16 hexadecimal digits", words[1]);
    }
    if (const std::string found = fingerprint_text(path); found != words[1]) {
      throw std::runtime_error(place() + in_quotes(name) + " must have the fingerprint " + words[1] +
                               ", got another file, of " + found);
    }
    return path;
  }

  std::pair<std::string, std::vector<std::string>> name_and_words(std::string const& value) const {
    std::vector<std::string> words = split(value, ' ');
    std::string name = words[0];
    words.erase(words.begin());
    if (words.empty()) fail("must have values behind the name", value);
    return {name, words};
  }

  void take_condition(std::string const& key, std::string const& value) {
    const auto [name, words] = name_and_words(value);
    for (std::string const& word : words) {
      if (word != "height" && word != "width" && word != "height/width" && !number_of<double>(word)) {
        fail("must be of numbers, height, width and height/width", value);
      }
    }
    const auto is_it = [&, wanted = name](SizeCondition const& each) { return each.name == wanted; };
    auto found = std::find_if(info_.conditions.begin(), info_.conditions.end(), is_it);
    if (found == info_.conditions.end()) {
      info_.conditions.push_back({name});
      found = info_.conditions.end() - 1;
    }
    std::vector<std::string>& values = key == "null" ? found->null : found->values;
    if (!values.empty()) fail("must be there once for a name", value);
    values = words;
  }

  std::vector<std::string> nulls_without_condition() const {
    std::vector<std::string> names;
    for (SizeCondition const& each : info_.conditions) {
      if (each.values.empty() || (!each.null.empty() && each.null.size() != each.values.size())) {
        names.push_back(each.name);
      }
    }
    return names;
  }

  template <class Number>
  std::vector<Number> numbers(std::vector<std::string> const& words, Number least, Number most) const {
    std::vector<Number> found;
    for (std::string const& word : words) {
      const std::optional<Number> number = number_of<Number>(word);
      if (!number || *number < least || *number > most || words.size() > 16) {
        fail("must have numbers in [" + text(double(least)) + ", " + text(double(most)) + "], at most 16",
             joined(words));
      }
      found.push_back(*number);
    }
    return found;
  }

  std::filesystem::path folder_, path_;
  std::vector<std::string> lines_ = {}, seen_ = {};
  std::size_t number_ = 1;  ///< of the line that is read; 0 for none
  PipelineInfo info_ = {};
};

}  // namespace detail

/// Reads the description of a pipeline, and whether its files are those that it was written with.
/// @param folder of export_pipeline.py
/// @throws std::runtime_error naming the file, the line and what is wrong with it
inline PipelineInfo read_pipeline_info(std::string const& folder) {
  return detail::PipelineReader(folder).read();
}

/// Which of the text encoders before the one of this index is of the same file, so that it need not encode again.
inline std::optional<std::size_t> same_text_encoder(PipelineInfo const& info, std::size_t index) {
  for (std::size_t k = 0; k < index; ++k) {
    if (info.text_encoders[k].file == info.text_encoders[index].file) return k;
  }
  return {};
}

/// What the networks of a pipeline take: what its text encoders made of prompts, put together as it says.
/// @param parts what each of info.text_encoders gave for the same texts (TextEncoder::conditions), in their order
/// @throws std::invalid_argument for another number of parts, and for what does not fit together
inline std::vector<NamedCondition> text_conditions(PipelineInfo const& info,
                                                   std::vector<std::vector<NamedCondition>> const& parts) {
  if (parts.size() != info.text_encoders.size()) {
    detail::refuse("text_conditions",
                   "parts must be one for each of the " + std::to_string(info.text_encoders.size()) + " text encoders",
                   std::to_string(parts.size()));
  }
  using Part = std::vector<NamedCondition>;
  std::vector<NamedCondition> found;
  for (std::size_t k = 0; k < parts.size();) {
    std::string const& prefix = info.text_encoders[k].prefix;
    std::vector<Part> behind, beside;
    for (; k < parts.size() && info.text_encoders[k].prefix == prefix; ++k) {
      if (info.text_encoders[k].behind) behind.push_back(side_by_side(std::exchange(beside, {})));
      beside.push_back(parts[k]);
    }
    behind.push_back(side_by_side(beside));
    for (NamedCondition& each : one_behind_another(behind)) {
      each.name = prefix + each.name;
      found.push_back(std::move(each));
    }
  }
  return filled_up(std::move(found), info.filled);
}

/// What the networks of a pipeline are told of the picture's size, on the host.
/// @param height, width of the picture in pixels
/// @returns [1, ...] float32 each
inline std::vector<NamedCondition> size_conditions(PipelineInfo const& info, std::int64_t height, std::int64_t width) {
  if (height < 1 || width < 1) {
    detail::refuse("size_conditions", "height and width must be at least 1",
                   std::to_string(height) + " and " + std::to_string(width));
  }
  const auto row = [&](std::vector<std::string> const& values) {
    const at::Tensor made = detail::host_tensor({1, std::int64_t(values.size())}, at::kFloat);
    for (std::size_t k = 0; k < values.size(); ++k) {
      std::string const& value = values[k];
      made.mutable_data_ptr<float>()[k] = value == "height"  ? float(height)
                                          : value == "width" ? float(width)
                                          : value == "height/width"
                                              ? float(double(height) / double(width))
                                              : float(detail::number_of<double>(value).value_or(0));
    }
    return made;
  };
  std::vector<NamedCondition> found;
  for (SizeCondition const& each : info.conditions) {
    found.push_back({each.name, row(each.values), row(each.null.empty() ? each.values : each.null)});
  }
  return found;
}

}  // namespace tstitch
