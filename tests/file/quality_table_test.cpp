#include <tstitch/file/quality_table.hpp>

#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "../catch.hpp"

using namespace tstitch;

TEST_CASE("quality tables come back as they were written") {
  const std::string path = (std::filesystem::temp_directory_path() / "tstitch_quality_table_test.txt").string();
  const QualityTable table{{"small", "middle", "large one"},
                           1.5,
                           {{2.03125, "profile:recommended", 30, {0.4, 0.1, 0.5}, "every:2,2", "none"},
                            {0, "ddim", 1, {0, 0, 1}, "none", "every:2"}}};
  write_quality_table(path, table);
  CHECK(read_quality_table(path) == table);

  const std::string head =
      "tstitch quality table 1\nnetworks\ta\tb\nguidance\t1.5\ndistance\tsampler\tsteps\tshares\tforecast\tforecast "
      "guidance\n";
  const auto refusal = [&](std::string const& text) {
    std::ofstream(path) << text;
    return message_of<std::runtime_error>([&] { read_quality_table(path); });
  };
  CHECK(refusal(head + "1\tddim\t10\t0.4,0.6\tnone\tnone\n") == "nothing was thrown");
  for (std::string const row :
       {"nan\tddim\t10\t0.4,0.6\tnone\tnone", "1\tddim\t0\t0.4,0.6\tnone\tnone", "1\tddim\t10\t0.4,0.5\tnone\tnone",
        "1\tddim\t10\t1\tnone\tnone", "1\tddim\t10\t1.4,-0.4\tnone\tnone", "1\tddim\t10\t0.4,0.6\tnone", "",
        "1\t\t10\t0.4,0.6\tnone\tnone", "1\tddim\t1e3\t0.4,0.6\tnone\tnone", "1\tddim\t10\tnan,nan\tnone\tnone"}) {
    CAPTURE(row);
    CHECK_THAT(refusal(head + row + "\n"), ContainsSubstring("in line 5 where values of the six columns must be"));
  }
  CHECK_THAT(refusal(head), ContainsSubstring("no row"));
  CHECK_THAT(refusal(head + "1\tddim\t10\t0.4,0.6\tnone\tnone"), ContainsSubstring("cut off"));
  CHECK_THAT(refusal("tstitch\n"), ContainsSubstring("another first line"));
  std::string other = head;
  other.replace(other.find("1.5"), 3, "inf");
  CHECK_THAT(refusal(other + "1\tddim\t10\t0.4,0.6\tnone\tnone\n"),
             ContainsSubstring("where the guidance scale must be"));
  std::filesystem::remove(path);
}

TEST_CASE("the bundled pair's table can be read") {
  const QualityTable table = read_quality_table(TSTITCH_MODELS "/cifar10_quality.txt");
  CHECK(table.networks == std::vector<std::string>{"cifar10-dit-small", "cifar10-dit-large"});
  CHECK(table.rows.size() >= 80);
}
