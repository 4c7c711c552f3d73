#include "memory/fault_log.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace godwit::memory {
namespace {

FaultLog successor_of(const FaultLog& log) {
  Result<FaultLog> opened = FaultLog::open(UniqueFd(::dup(log.fd())));
  if (!opened.ok()) ADD_FAILURE() << opened.error().what();
  return std::move(*opened);
}

FaultLog log_of_two_spaces() {
  FaultLog::Missing missing;
  missing[SpaceId{7}].add(100, 5);
  missing[SpaceId{9}].add(200, 1);
  Result<FaultLog> log = FaultLog::create(missing);
  if (!log.ok()) ADD_FAILURE() << log.error().what();
  return std::move(*log);
}

TEST(FaultLog, TellsASuccessorWhatWasMissingAtTheStart) {
  FaultLog log = log_of_two_spaces();
  FaultLog next = successor_of(log);
  ASSERT_EQ(next.missing().size(), 2u);
  EXPECT_EQ(next.missing().at(SpaceId{7}).count(), 5u);
  EXPECT_EQ(next.missing().at(SpaceId{9}).count(), 1u);
  EXPECT_TRUE(next.entries().empty());
}

// Copied again, they would look for areas that are registered no longer.
TEST(FaultLog, TellsASuccessorOfACompleteDrainThatNothingIsMissing) {
  FaultLog log = log_of_two_spaces();
  log.mark_complete();
  FaultLog next = successor_of(log);
  ASSERT_EQ(next.missing().size(), 2u);  // Their userfaultfds are held all the same.
  EXPECT_EQ(next.missing().at(SpaceId{7}).count(), 0u);
  EXPECT_EQ(next.missing().at(SpaceId{9}).count(), 0u);
}

TEST(FaultLog, KeepsAnEventThatItsReaderHadNoTimeToCount) {
  FaultLog log = log_of_two_spaces();
  log.slot(0)->event = UFFD_EVENT_UNMAP;
  FaultLog next = successor_of(log);
  ASSERT_EQ(next.entries().size(), 1u);
  EXPECT_EQ(next.entries()[0].message.event, UFFD_EVENT_UNMAP);
  next.slot(1)->event = UFFD_EVENT_PAGEFAULT;  // Who waits for a page asks again.
  EXPECT_EQ(successor_of(next).entries().size(), 1u);
}

}  // namespace
}  // namespace godwit::memory
