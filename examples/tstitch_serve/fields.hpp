/// @file
/// What a request says, field by field.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common/job.hpp"
#include "arguments.hpp"

/// Why a request is not carried out, as a client is told.
class Refusal : public std::runtime_error {
 public:
  /// @param place what is wrong: a field, a header, "body"
  /// @param rule what it must be, and what it was
  Refusal(int status, std::string place, std::string const& rule)
      : std::runtime_error(place + ": " + rule), status_(status), place_(std::move(place)) {}

  int status() const { return status_; }
  std::string const& place() const { return place_; }

 private:
  int status_;
  std::string place_;
};

/// A field of a request that is an option of tstitch_sample, too.
struct OptionField {
  enum class Kind { number, numbers, text, number_or_text };
  char const* name;
  Kind kind;

  /// "--guidance-interval"
  std::string option() const {
    std::string text = std::string("--") + name;
    std::replace(text.begin(), text.end(), '_', '-');
    return text;
  }
};

inline constexpr std::array option_fields = std::to_array<OptionField>({
    {"seed", OptionField::Kind::numbers},
    {"count", OptionField::Kind::number},
    {"steps", OptionField::Kind::number},
    {"ratio", OptionField::Kind::number},
    {"fractions", OptionField::Kind::numbers},
    {"routing", OptionField::Kind::text},
    {"profile", OptionField::Kind::text},
    {"sampler", OptionField::Kind::text},
    {"order", OptionField::Kind::number},
    {"eta", OptionField::Kind::number},
    {"spacing", OptionField::Kind::text},
    {"timesteps", OptionField::Kind::numbers},
    {"sigmas", OptionField::Kind::numbers},
    {"size", OptionField::Kind::number_or_text},
    {"guidance", OptionField::Kind::numbers},
    {"guidance_interval", OptionField::Kind::text},
    {"guidance_rescale", OptionField::Kind::number},
    {"guidance_projection", OptionField::Kind::numbers},
    {"guidance_network", OptionField::Kind::number},
    {"forecast_guidance", OptionField::Kind::text},
});

/// The other fields.
inline constexpr std::array own_fields{"class", "prompt", "negative", "priority", "format", "stream", "preview_every"};

inline std::vector<std::string> field_names() {
  std::vector<std::string> names(own_fields.begin(), own_fields.end());
  for (OptionField const& field : option_fields) names.emplace_back(field.name);
  return names;
}

/// Of those that choose the same thing in two ways a request takes the place of all that the command line says.
inline std::vector<std::vector<std::string>> alternatives() {
  return {{"--profile", "--sampler", "--order", "--eta", "--spacing", "--timesteps", "--sigmas"},
          {"--ratio", "--fractions", "--routing"},
          {"--steps", "--timesteps", "--sigmas"},
          {"--shape", "--size"}};
}

/// What a client asks for.
struct Asked {
  std::vector<GivenOption> options = {};
  std::vector<std::string> classes = {}, prompts = {};
  std::optional<std::string> negative = {};
  std::int64_t priority = 0;
  std::int64_t preview_every = 0;  ///< steps; 0: none
  bool stream = false;
  bool png = false;  ///< instead of JSON

  bool has(std::string const& option) const {
    return std::ranges::any_of(options, [&](GivenOption const& each) { return each.name == option; });
  }
};

/// The options of the command line, but for those that the request says otherwise, and those of the request.
inline std::vector<GivenOption> with_request(std::vector<GivenOption> const& drawing, Asked const& asked) {
  std::vector<std::string> replaced;
  for (GivenOption const& each : asked.options) {
    replaced.push_back(each.name);
    for (std::vector<std::string> const& group : alternatives()) {
      if (std::ranges::count(group, each.name) > 0) replaced.insert(replaced.end(), group.begin(), group.end());
    }
  }
  std::vector<GivenOption> all;
  for (GivenOption const& each : drawing) {
    const bool stays = std::ranges::count(replaced, each.name) == 0 &&
                       !(each.name == "--prompt" && !asked.prompts.empty()) &&
                       !(each.name == "--negative" && asked.negative);
    if (stays) all.push_back(each);
  }
  all.insert(all.end(), asked.options.begin(), asked.options.end());
  return all;
}

/// As messages show a value.
inline std::string shown_value(Json const& value) {
  return tstitch::words::printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), 100);
}

/// "negative, sampler ...": the message of an option in the words of fields.
inline std::string in_words_of_fields(std::string message) {
  const std::size_t end = std::min(message.find(", got "), message.size());  // behind it is what the client wrote
  std::string text;
  for (std::size_t i = 0; i < message.size();) {
    std::size_t word = i + 2;
    if (i >= end || message.compare(i, 2, "--") != 0 || (i > 0 && message[i - 1] == '-')) {
      text += message[i++];
      continue;
    }
    while (word < message.size() && (std::islower(static_cast<unsigned char>(message[word])) || message[word] == '-')) {
      ++word;
    }
    std::string name = message.substr(i + 2, word - i - 2);
    std::replace(name.begin(), name.end(), '-', '_');
    if (name == "shape") name = "size";  // which is the way to state it
    const std::vector<std::string> known = field_names();
    text += std::ranges::count(known, name) > 0 ? name : message.substr(i, word - i);
    i = word;
  }
  return text;
}

/// A refusal of what is not what it must be, in the words of fields.
inline Refusal refusal_of(int status, std::string const& message) {
  const std::string text = in_words_of_fields(message);
  const std::size_t colon = text.find(": ");
  if (colon == std::string::npos) return {status, "request", text};
  return {status, text.substr(0, colon), text.substr(colon + 2)};
}

/// JSON without what has no place in a request: deep nesting, and a field twice.
/// @throws Refusal
inline Json read_body(std::string const& body) {
  constexpr int deepest = 2;  // an object of lists
  std::set<std::string> names;
  const auto look = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > deepest) throw Refusal(400, "body", "must be an object of values and lists, got deeper nesting");
    if (event == Json::parse_event_t::key && depth == 1 && !names.insert(value.get<std::string>()).second) {
      throw Refusal(400, "body", "must have each field once, got " + shown_value(value) + " again");
    }
    return true;
  };
  Json json;
  try {
    json = Json::parse(body, look);
  } catch (Json::parse_error const& error) {
    throw Refusal(400, "body", "must be JSON in UTF-8, got what is none at byte " + std::to_string(error.byte));
  } catch (Json::exception const&) {
    throw Refusal(400, "body", "must have numbers that are finite, got one beyond 1.8e308");
  }
  if (!json.is_object()) throw Refusal(400, "body", std::string("must be a JSON object, got ") + json.type_name());
  return json;
}

/// Reads the fields of a request.
class Fields {
 public:
  explicit Fields(Json json) : json_(std::move(json)) {
    const std::vector<std::string> known = field_names();
    for (auto const& [name, value] : json_.items()) {
      if (std::ranges::count(known, name) > 0) continue;
      throw Refusal(400, tstitch::words::printable(name, 60),
                    "must be one of " + joined(known) + ", got another field");
    }
  }

  /// @param png, stream what the header Accept says
  Asked asked(bool png, bool stream) const {
    Asked asked{.stream = stream, .png = png};
    for (OptionField const& field : option_fields) {
      if (Json const* const value = find(field.name)) {
        asked.options.push_back({field.option(), {text_of_option(field, *value)}});
      }
    }
    asked.classes = texts("class", true);
    asked.prompts = texts("prompt", false);
    if (Json const* const value = find("negative")) asked.negative = text("negative", *value);
    asked.priority = number("priority", -100, 100, 0);
    asked.preview_every = number("preview_every", 1, 100'000, 0);
    if (Json const* const value = find("stream")) {
      if (!value->is_boolean()) refuse("stream", "true or false", *value);
      asked.stream = value->get<bool>();
    }
    if (Json const* const value = find("format")) {
      if (*value != "png" && *value != "json") refuse("format", "\"png\" or \"json\"", *value);
      asked.png = *value == "png";
      if (asked.png && asked.stream) refuse("format", "\"json\" with stream", *value);
    }
    asked.png = asked.png && !asked.stream;
    if (asked.preview_every > 0 && !asked.stream) refuse("preview_every", "with stream", *find("preview_every"));
    return asked;
  }

 private:
  [[noreturn]] static void refuse(std::string const& name, std::string const& rule, Json const& value) {
    throw Refusal(400, name, "must be " + rule + ", got " + shown_value(value));
  }

  Json const* find(char const* name) const {
    const auto found = json_.find(name);
    return found == json_.end() ? nullptr : &*found;
  }

  /// What is one value, or a list of these.
  static std::vector<Json> values(char const* name, Json const& value) {
    if (!value.is_array()) return {value};
    if (value.empty()) refuse(name, "a list of at least one value", value);
    return {value.begin(), value.end()};
  }

  static std::string text(char const* name, Json const& value) {
    if (!value.is_string()) refuse(name, "a text", value);
    std::string written = value.get<std::string>();
    if (written.empty()) refuse(name, "a text with something in it", value);
    // Tokenizers and names of C end there.
    if (written.find('\0') != std::string::npos) refuse(name, "a text without NUL", value);
    return written;
  }

  std::vector<std::string> texts(char const* name, bool numbers) const {
    std::vector<std::string> all;
    Json const* const given = find(name);
    if (!given) return all;
    for (Json const& value : values(name, *given)) {
      const bool number = numbers && value.is_number_integer();
      all.push_back(number ? value.dump() : text(name, value));
    }
    return all;
  }

  static std::string text_of_option(OptionField const& field, Json const& value) {
    using Kind = OptionField::Kind;
    const bool one = value.is_number();
    switch (field.kind) {
      case Kind::number:
        if (!one) refuse(field.name, "a number", value);
        return value.dump();
      case Kind::text: return text(field.name, value);
      case Kind::number_or_text: return one ? value.dump() : text(field.name, value);
      case Kind::numbers: break;
    }
    std::string list;
    for (Json const& each : values(field.name, value)) {
      if (!each.is_number()) refuse(field.name, "a number or a list of numbers", value);
      list += (list.empty() ? "" : ",") + each.dump();
    }
    return list;
  }

  std::int64_t number(char const* name, std::int64_t least, std::int64_t most, std::int64_t without) const {
    Json const* const value = find(name);
    if (!value) return without;
    // Whole numbers beyond 2^63 are unsigned.
    const bool fits = value->is_number_integer() &&
                      (!value->is_number_unsigned() || value->get<std::uint64_t>() <= std::uint64_t(most)) &&
                      value->get<std::int64_t>() >= least && value->get<std::int64_t>() <= most;
    if (!fits) refuse(name, "a whole number in " + range_text(least, most), *value);
    return value->get<std::int64_t>();
  }

  Json json_;
};
