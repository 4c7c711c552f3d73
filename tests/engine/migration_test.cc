// The real workers, driven as the daemons drive them.
#include "two_nodes.h"

namespace godwit {
namespace {

class Migration : public TwoNodes, public ::testing::WithParamInterface<wire::Mode> {};

TEST_P(Migration, EveryByteAndTheHeartbeatArrive) {
  ASSERT_NO_FATAL_FAILURE(
      start_program({tracee("hammer"), "--mib", "64", "--rate-mb-s", "50", "--threads", "3"}));
  ASSERT_EQ(read_line(), "ready");
  for (int i = 0; i < 4; ++i) {
    Result<Reports> moved = migrate(GetParam());
    ASSERT_OK(moved);
    ASSERT_EQ(moved->source.outcome(), wire::Report::MOVED)
        << moved->source.reason() << " / " << moved->target.reason();
    ASSERT_EQ(moved->target.outcome(), wire::Report::MOVED) << moved->target.reason();
    ASSERT_NO_FATAL_FAILURE(follow());
    RecordProperty(fmt::format("downtime_us_{}", i), static_cast<int>(moved->source.downtime_us()));
  }
  ASSERT_NO_FATAL_FAILURE(send_line("check"));
  std::string json = read_line();
  EXPECT_EQ(json.substr(0, 1), "{") << json;
  EXPECT_EQ(read_line(), "ok");
  EXPECT_EQ(read_line(), "exited 0");
}

INSTANTIATE_TEST_SUITE_P(Modes, Migration,
                         ::testing::Values(wire::STOP, wire::PRECOPY, wire::POSTCOPY, wire::HYBRID,
                                           wire::AUTO),
                         [](const auto& info) { return wire::Mode_Name(info.param); });

}  // namespace
}  // namespace godwit
