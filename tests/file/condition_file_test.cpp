// What is written as a file of conditions is read as it was. What is refused of files is in hostile_file_test.cpp; that
// Python reads them is tried in tests/export/text_encoder_test.py.

#include <tstitch/file/condition_file.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "../catch.hpp"

using namespace tstitch;

namespace {

std::string path_of(std::string const& name) {
  std::filesystem::create_directories(TSTITCH_TEST_DATA "/conditions");
  return TSTITCH_TEST_DATA "/conditions/" + name;
}

/// 0, 1, 2 ...
at::Tensor counted(std::vector<std::int64_t> const& sizes, at::ScalarType type) {
  const at::Tensor tensor = detail::host_tensor(sizes, at::kFloat);
  for (std::int64_t k = 0; k < tensor.numel(); ++k) tensor.mutable_data_ptr<float>()[k] = float(k % 251);
  return tensor.to(type);
}

}  // namespace

TEST_CASE("conditions of all types and sizes are read as they were written") {
  const std::string path = path_of("all.pt");
  for (const at::ScalarType type :
       {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kByte}) {
    for (std::vector<std::int64_t> const& sizes :
         std::vector<std::vector<std::int64_t>>{{2}, {2, 3}, {2, 300, 7}, {2, 0, 5}, {2, 1, 1, 1, 4}}) {
      const at::Tensor value = counted(sizes, type);
      std::vector<std::int64_t> one = sizes;
      one[0] = 1;
      save_conditions(path, {{"a", value, counted(one, type)}, {"b.c", value, {}}}, {"first", "second"});
      const auto found = load_conditions(path);
      REQUIRE(found.size() == 2);
      CHECK(found[0].name == "a");
      CHECK(found[1].name == "b.c");
      for (NamedCondition const& each : found) {
        CHECK(each.value.scalar_type() == type);
        CHECK(each.value.equal(value));
      }
      CHECK(found[0].null.equal(counted(one, type)));
      CHECK_FALSE(found[1].null.defined());
      CHECK(load_prompts(path) == std::vector<std::string>{"first", "second"});
    }
  }
}

TEST_CASE("what is a view of another tensor is written alone") {
  const std::string path = path_of("view.pt");
  const at::Tensor all = counted({1000, 8}, at::kFloat), part = all.narrow(0, 3, 2).transpose(0, 1);
  save_conditions(path, {{"part", part, {}}});
  CHECK(load_conditions(path)[0].value.equal(part));
  CHECK(load_prompts(path).empty());
  CHECK(std::filesystem::file_size(path) < 2000);
  save_conditions(path, {});
  CHECK(load_conditions(path).empty());
}

TEST_CASE("prompts are written as they are, or refused, and then nothing is written") {
  const std::string path = path_of("prompts.pt");
  const std::vector<std::string> odd{std::string("a\0b", 3), "", "\xe7\x8c\xab\n", std::string(65536, 'x')};
  save_conditions(path, {{"a", counted({4, 2}, at::kFloat), {}}}, odd);
  CHECK(load_prompts(path) == odd);
  const auto refused = [&](std::vector<std::string> const& prompts, std::int64_t rows, std::string const& words) {
    const std::string other = path_of("refused.pt");
    const std::string message = message_of<std::invalid_argument>([&] {
      save_conditions(other, {{"a", counted({rows, 2}, at::kFloat), {}}}, prompts);
    });
    CHECK_THAT(message, ContainsSubstring("tstitch::save_conditions: ") && ContainsSubstring(words));
    CHECK_FALSE(std::filesystem::exists(other));
  };
  refused({"a"}, 2, "prompts must be one for each of 2 rows, got 1");
  refused({"\xff"}, 1, "prompts must be UTF-8");
  refused({std::string(65537, 'x')}, 1, "at most 64 KiB each");
  refused(std::vector<std::string>(257, std::string(65536, 'x')), 257, "16 MiB together");
  CHECK_THROWS_AS(save_conditions(path, {{"a", {}, counted({1}, at::kFloat)}}), std::invalid_argument);
  CHECK(load_prompts(path) == odd);
  CHECK_THROWS_AS(save_conditions(path_of("no/such/folder.pt"), {}), std::runtime_error);
}
