#include "cli/json.h"

#include <gtest/gtest.h>

#include <map>

#include "cli/endpoint.h"
#include "cli/exit_codes.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

TEST(Json, PsHasTheNamesThatScriptsRelyOn) {
  api::CapsuleInfo capsule;
  capsule.set_name("c1");
  capsule.add_argv("sleep");
  capsule.add_argv("5");
  capsule.set_age_us(2'500'000);
  const Json json = to_json(capsule);
  for (const char* name : {"name", "id", "node", "state", "user", "command", "ip", "pid",
                           "memory_bytes", "cpu", "age_s", "migrations", "residual"}) {
    EXPECT_TRUE(json.contains(name)) << name;
  }
  EXPECT_EQ(json["command"], "sleep 5");
  EXPECT_EQ(json["age_s"], 2.5);
  EXPECT_TRUE(json["residual"].is_array());
}

TEST(Json, MigrateHasTheNamesThatScriptsRelyOn) {
  api::MigrationResult migration;
  auto* round = migration.add_rounds();
  round->set_pages(3);
  round->set_bytes(12288);
  round->set_us(7);
  const Json json = to_json(migration);
  for (const char* name :
       {"capsule", "source", "target", "mode", "outcome", "reason", "downtime_us", "total_us",
        "bytes_sent", "pages_sent", "pages_zero", "rounds", "residual"}) {
    EXPECT_TRUE(json.contains(name)) << name;
  }
  EXPECT_EQ(json["rounds"][0].dump(), R"({"pages":3,"bytes":12288,"us":7})");
}

TEST(Json, AnEndIsACodeOrASignal) {
  EXPECT_EQ(wait_to_json(true, 0x700, "").dump(), R"({"exited":true,"exit_code":7})");
  EXPECT_EQ(wait_to_json(true, 9, "").dump(), R"({"exited":true,"signal":9})");
  EXPECT_EQ(wait_to_json(false, 0, "").dump(), R"({"exited":false})");
}

TEST(ExitCodes, OfProgramsPassThrough) {
  EXPECT_EQ(exit_of_program(0x2a00), 42);
  EXPECT_EQ(exit_of_program(9), 137);
  EXPECT_EQ(exit_for(Error(Errc::not_found, "")), Exit::not_found);
  EXPECT_EQ(exit_for(Error(Errc::in_doubt, "")), Exit::in_doubt);
  EXPECT_EQ(exit_for(Error(Errc::os, "")), Exit::failed);
}

TEST(Endpoint, FirstGivenWins) {
  std::map<std::string, std::string> variables;
  const auto choose = [&](const EndpointOptions& options, bool local_is_up) {
    return choose_socket(
        options,
        [&](const char* name) {
          const auto found = variables.find(name);
          return found == variables.end() ? nullptr : found->second.c_str();
        },
        [&](const std::string&) { return local_is_up; });
  };
  EXPECT_EQ(choose({}, false), "/run/godwit/godwitd.sock");
  EXPECT_EQ(choose({}, true), "/run/godwit/local/default/n1/godwitd.sock");
  variables["GODWIT_CLUSTER"] = "t";
  EXPECT_EQ(choose({}, true), "/run/godwit/local/t/n1/godwitd.sock");
  EXPECT_EQ(choose({.socket = "", .cluster = "", .node = "n2"}, true),
            "/run/godwit/local/t/n2/godwitd.sock");
  variables["GODWIT_SOCKET"] = "/s";
  EXPECT_EQ(choose({}, true), "/s");
  EXPECT_EQ(choose({.socket = "", .cluster = "u", .node = ""}, true),
            "/run/godwit/local/u/n1/godwitd.sock");
  EXPECT_EQ(choose({.socket = "/mine", .cluster = "u", .node = "n2"}, true), "/mine");
}

TEST(Table, IsAligned) {
  Table table({"A", "LONGER", "C"});
  table.add({"xxx", "\xc3\xa4", "last"});
  EXPECT_EQ(table.text(), "A    LONGER  C\nxxx  \xc3\xa4       last\n");
}

TEST(HumanUnits, AreShort) {
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1536 * 1024), "1.5 MiB");
  EXPECT_EQ(human_us(870), "870 us");
  EXPECT_EQ(human_us(1250), "1.25 ms");
  EXPECT_EQ(human_age(7'300'000'000), "2h");
}

}  // namespace
}  // namespace godwit::cli
