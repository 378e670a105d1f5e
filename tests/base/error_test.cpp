#include <tstitch/base/error.hpp>

#include <string>

#include "../catch.hpp"

using tstitch::words::printable;

TEST_CASE("text of others is shown without what terminals obey") {
  CHECK(printable("cat \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80") == "cat \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80");
  CHECK(printable("\x1B[31mred\n\t\x7F") == "\\x1b[31mred\\x0a\\x09\\x7f");
  CHECK(printable("\xC2\x9B[") == "\\xc2\\x9b[");  // CSI as one character
  CHECK(printable(std::string("a\0b", 3)) == "a\\x00b");
  // No UTF-8: a byte alone, overlong, a surrogate, beyond U+10FFFF, cut off
  CHECK(printable("\xFF") == "\\xff");
  CHECK(printable("\xC0\xAF") == "\\xc0\\xaf");
  CHECK(printable("\xE0\x80\xAF") == "\\xe0\\x80\\xaf");
  CHECK(printable("\xED\xA0\x80") == "\\xed\\xa0\\x80");
  CHECK(printable("\xF4\x90\x80\x80") == "\\xf4\\x90\\x80\\x80");
  CHECK(printable("\xE2\x82") == "\\xe2\\x82");
}

TEST_CASE("long text is cut, between characters, and says how long it was") {
  CHECK(printable(std::string(200, 'x')) == std::string(200, 'x'));
  CHECK(printable(std::string(201, 'x')) == std::string(200, 'x') + "... (201 bytes)");
  CHECK(printable("ab\xE2\x82\xAC!!", 3) == "ab\xE2\x82\xAC... (7 bytes)");
}
