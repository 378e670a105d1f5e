#include <tstitch/file/forecast_file.hpp>

#include <filesystem>
#include <fstream>
#include <string>

#include "../catch.hpp"

using namespace tstitch;

namespace {

const std::string path = TSTITCH_TEST_DATA "/forecast_table.txt";

std::string refusal(std::string const& text) {
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  std::ofstream(path, std::ios::binary) << text;
  const std::string message = message_of<std::runtime_error>([] { read_forecast_table(path); });
  const std::string begin = "tstitch::read_forecast_table: '" + path + "': must be a forecast table, got ";
  return message.starts_with(begin) ? message.substr(begin.size()) : message;
}

}  // namespace

TEST_CASE("forecast tables are read as they were written") {
  std::filesystem::create_directories(TSTITCH_TEST_DATA);
  for (ForecastTable const& table : {ForecastTable{{false, true, false, true, true}, 2, 1},
                                     ForecastTable{{false, false}, 0, 0}, ForecastTable{{true}, 8, 65535}}) {
    write_forecast_table(path, table);
    const ForecastTable read = read_forecast_table(path);
    CHECK(read.forecast == table.forecast);
    CHECK(read.order == table.order);
    CHECK(read.first_network == table.first_network);
  }
}

TEST_CASE("files that are no forecast tables are refused") {
  const std::string good = "tstitch forecast table 1\norder 1\nfirst network 1\nsteps 4\nforecast 2\n";
  const auto with = [&](std::string const& from, std::string const& to) {
    std::string text = good;
    return refusal(text.replace(text.find(from), from.size(), to));
  };
  CHECK(refusal(good) == "nothing was thrown");
  CHECK(with("forecast 2\n", "forecast ") == "nothing was thrown");
  CHECK(with("table 1", "table 2") == "another first line than 'tstitch forecast table 1'");
  CHECK(with("order 1\n", "") == "4 lines, not 5");
  CHECK(with("order 1", "order 9") == "order '9', which must be in [0, 8]");
  CHECK(with("order 1", "order -1") == "order '-1', which must be in [0, 8]");
  CHECK(with("order 1", "order nan") == "order 'nan', which must be in [0, 8]");
  CHECK(with("order 1", "Order 1") == "'Order 1' where a line must begin with 'order '");
  CHECK(with("steps 4", "steps 99999999999") == "steps '99999999999', which must be in [0, 1000000]");
  CHECK(with("steps 4", "steps 0") == "forecasts of no steps");
  CHECK(with("forecast 2", "forecast 4") == "forecast '4', which must be in [0, 3]");
  CHECK(with("forecast 2", "forecast 2,2") == "step 2 behind a later one");
  CHECK(with("forecast 2", "forecast 3,2") == "step 2 behind a later one");
  CHECK(with("forecast 2", "forecast 2,") == "forecast '', which must be in [0, 3]");
  CHECK(with("forecast 2\n", "forecast 2\n\nmore\n") == "7 lines, not 5");
  CHECK(refusal(std::string("\0\1\2", 3)) == "another first line than 'tstitch forecast table 1'");
  CHECK(refusal("") == "an empty file or a folder");
  CHECK_THAT(message_of<std::runtime_error>([] { read_forecast_table(TSTITCH_TEST_DATA "/nowhere"); }),
             ContainsSubstring("must be a file that can be read, got none"));
}
