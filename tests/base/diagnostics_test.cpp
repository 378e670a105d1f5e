#include <tstitch/base/diagnostics.hpp>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "../catch.hpp"

TEST_CASE("a fallback is listed once, however often and from how many threads it is told") {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([] {
      for (int k = 0; k < 100; ++k) tstitch::detail::diagnose("Test", "takes the way " + std::to_string(k % 3));
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<std::string> all = tstitch::diagnostics();
  std::sort(all.begin(), all.end());
  CHECK(all == std::vector<std::string>{"tstitch::Test: takes the way 0", "tstitch::Test: takes the way 1",
                                        "tstitch::Test: takes the way 2"});
}
