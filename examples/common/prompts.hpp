/// @file
/// Files of prompts.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "strict.hpp"

/// The lines of a text that have something in them.
/// @throws std::runtime_error for what cannot be read, is too large or has none
inline std::vector<std::string> prompts_in(std::string const& path) {
  constexpr std::size_t most_bytes = std::size_t(16) << 20, most = 65536;
  const auto fail = [&](std::string const& got) {
    throw std::runtime_error("--prompts: " + in_quotes(path) + " must be a text with a prompt a line, at most " +
                             std::to_string(most) + " and 16 MiB, got " + got);
  };
  std::error_code error;
  // Pipes and devices may have no end.
  if (!std::filesystem::is_regular_file(path, error)) fail("none");
  if (std::filesystem::file_size(path, error) > most_bytes) fail("more");
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("no file that can be read");
  std::vector<std::string> prompts;
  for (std::string line; std::getline(file, line);) {
    if (prompts.empty() && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);  // a byte order mark
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (prompts.size() == most) fail("more lines");
    prompts.push_back(std::move(line));
  }
  if (file.bad()) fail("an error while it was read");
  if (prompts.empty()) fail("none");
  return prompts;
}
