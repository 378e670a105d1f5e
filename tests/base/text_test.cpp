// Words and numbers as people write them: what is one is read whole, what is none is refused with what it must be.

#include <tstitch/base/text.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "../catch.hpp"

using namespace tstitch::words;

namespace {

std::string refusal(auto action) {
  return message_of<std::invalid_argument>(action);
}

}  // namespace

TEST_CASE("a number is all of a text, in decimals and finite") {
  CHECK(number_of<int>("-12") == -12);
  CHECK(number_of<double>("0.25") == 0.25);
  CHECK(number_of<double>("1e-3") == 0.001);
  CHECK(number_of<int>("010") == 10);
  for (char const* text : {"", " 1", "1 ", "1.5", "0x10", "+1", "99999999999"}) {
    INFO(text);
    CHECK_FALSE(number_of<int>(text).has_value());
  }
  CHECK_FALSE(number_of<std::uint64_t>("-1").has_value());
  for (char const* text : {"nan", "inf", "-inf", "1e999", "1,5"}) {
    INFO(text);
    CHECK_FALSE(number_of<double>(text).has_value());
  }
}

TEST_CASE("lists of numbers are refused with what they must be") {
  CHECK(numbers_of("--at", "0.5,1") == std::vector<double>{0.5, 1});
  CHECK(numbers_of<int>("--at", "3:2:1", ':', 3) == std::vector<int>{3, 2, 1});
  CHECK(refusal([] { numbers_of("--at", "1,,2"); }) == "--at: must be numbers with commas between, got '1,,2'");
  CHECK(refusal([] { numbers_of<int>("--at", "1:2", ':', 3); }) ==
        "--at: must be 3 whole numbers with colons between, got '1:2'");
  CHECK(refusal([] { numbers_of("--at", "nan", ',', 1); }) == "--at: must be a finite number, got 'nan'");
}

TEST_CASE("words are split, joined and quoted") {
  CHECK(split("a,,b", ',') == std::vector<std::string>{"a", "", "b"});
  CHECK(split("", ',') == std::vector<std::string>{""});
  CHECK(joined({"a", "b", "c"}) == "a, b, c");
  CHECK(joined({}).empty());
  CHECK(in_quotes("a\x1b") == "'a\\x1b'");
  CHECK(in_quotes(std::string(61, 'x')) == "'" + std::string(60, 'x') + "... (61 bytes)'");
  struct Entry {
    std::string name;
  };
  CHECK(names_in(std::vector<Entry>{{"one"}, {"two"}}) == std::vector<std::string>{"one", "two"});
  CHECK(text(0.1) == "0.1");
  CHECK(text(1.0 / 3) == "0.3333333333");
}
