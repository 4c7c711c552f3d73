#include "cli/command_line.h"

#include <gtest/gtest.h>

namespace godwit::cli {
namespace {

struct Parsed {
  CommandLine line;
  bool ok = false;
  int code = -1;
};

std::unique_ptr<Parsed> parse(const std::vector<std::string>& arguments) {
  auto parsed = std::make_unique<Parsed>();
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  parsed->ok = parse_command_line(arguments, parsed->line, parsed->code);
  testing::internal::GetCapturedStdout();
  testing::internal::GetCapturedStderr();
  return parsed;
}

using Words = std::vector<std::string>;

TEST(CommandLine, RunTakesTheProgramAsItIs) {
  auto with = parse({"run", "-d", "--name", "c1", "--", "prog", "-d", "--", "--name", "x"});
  ASSERT_TRUE(with->ok);
  EXPECT_EQ(with->line.options.argv, (Words{"prog", "-d", "--", "--name", "x"}));
  EXPECT_EQ(with->line.options.name, "c1");
  EXPECT_TRUE(with->line.options.detach);
  auto without = parse({"run", "--cpus", "2", "sh", "-c", "exit 7"});
  ASSERT_TRUE(without->ok);
  EXPECT_EQ(without->line.options.argv, (Words{"sh", "-c", "exit 7"}));
  EXPECT_EQ(without->line.options.cpus, 2);
}

TEST(CommandLine, RunsNodeIsWhereItRunsNotWhomToAsk) {
  auto parsed = parse({"--node", "n2", "run", "--node", "n3", "--", "x"});
  ASSERT_TRUE(parsed->ok);
  EXPECT_EQ(parsed->line.options.endpoint.node, "n2");
  EXPECT_EQ(parsed->line.options.run_node, "n3");
}

TEST(CommandLine, SeveralVariablesOneEach) {
  auto parsed = parse({"run", "--env", "A=1", "--env", "B=2", "--", "x"});
  ASSERT_TRUE(parsed->ok);
  EXPECT_EQ(parsed->line.options.env, (Words{"A=1", "B=2"}));
}

TEST(CommandLine, GlobalOptionsMayFollowTheCommand) {
  auto parsed = parse({"ps", "--cluster", "t", "--node", "n2", "--json"});
  ASSERT_TRUE(parsed->ok);
  EXPECT_EQ(parsed->line.options.endpoint.cluster, "t");
  EXPECT_EQ(parsed->line.options.endpoint.node, "n2");
  EXPECT_TRUE(parsed->line.options.json);
}

TEST(CommandLine, MigrateUnderstandsItsModesOnly) {
  auto parsed = parse({"migrate", "c1", "n2", "--mode", "hybrid", "--downtime-target", "5ms"});
  ASSERT_TRUE(parsed->ok);
  EXPECT_EQ(parsed->line.options.mode, "hybrid");
  EXPECT_EQ(parsed->line.options.target, "n2");
  auto bad = parse({"migrate", "c1", "n2", "--mode", "teleport"});
  EXPECT_FALSE(bad->ok);
  EXPECT_EQ(bad->code, 2);
}

TEST(CommandLine, MistakesAreUsageErrorsAndHelpIsNone) {
  for (const Words& bad : {Words{}, Words{"frobnicate"}, Words{"logs"}, Words{"signal", "c1"},
                           Words{"resolve", "c1"}, Words{"local"}, Words{"ps", "--colour"}}) {
    auto parsed = parse(bad);
    EXPECT_FALSE(parsed->ok);
    EXPECT_EQ(parsed->code, 2);
  }
  for (const char* command :
       {"run", "ps", "nodes", "logs", "attach", "wait", "signal", "kill", "freeze", "thaw",
        "migrate", "can-migrate", "history", "doctor", "resolve", "rm", "local"}) {
    auto parsed = parse({command, "--help"});
    EXPECT_FALSE(parsed->ok) << command;
    EXPECT_EQ(parsed->code, 0) << command;
  }
}

TEST(Signals, ByNameAndNumber) {
  EXPECT_EQ(parse_signal("TERM"), 15);
  EXPECT_EQ(parse_signal("sigusr1"), 10);
  EXPECT_EQ(parse_signal("9"), 9);
  EXPECT_EQ(parse_signal("0"), 0);
  EXPECT_EQ(parse_signal("TERMX"), 0);
  EXPECT_EQ(parse_signal(""), 0);
  EXPECT_EQ(parse_signal("65"), 0);
}

TEST(Durations, HaveUnits) {
  EXPECT_EQ(parse_duration_us("10ms"), 10'000);
  EXPECT_EQ(parse_duration_us("500us"), 500);
  EXPECT_EQ(parse_duration_us("1.5s"), 1'500'000);
  EXPECT_EQ(parse_duration_us("3"), 3'000);
  EXPECT_EQ(parse_duration_us("fast"), -1);
  EXPECT_EQ(parse_duration_us("-1ms"), -1);
  EXPECT_EQ(parse_duration_us("1h"), -1);
}

TEST(ProgramEnvironment, IsOursWithoutOurOwnVariables) {
  const char* ours[] = {"PATH=/bin", "GODWIT_SOCKET=/x", "HOME=/root", "A=old", nullptr};
  EXPECT_EQ(program_environment(ours, {"A=new"}, false),
            (Words{"PATH=/bin", "HOME=/root", "A=new"}));
  EXPECT_EQ(program_environment(ours, {}, true), (Words{"PATH=/bin", "A=old"}));
}

}  // namespace
}  // namespace godwit::cli
