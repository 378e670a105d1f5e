/// @file
/// A program that has two libraries of the headers in it.
#include <string>

extern "C" int draw_one(std::string& png);
extern "C" int draw_two(std::string& png);

int main() {
  std::string one, two;
  return draw_one(one) != 0 || draw_two(two) != 0 || one.empty() || one != two;
}
