#include "restore/family.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdio>
#include <random>

namespace godwit::restore {
namespace {

using Kind = FamilyStep::Kind;
constexpr Relative init{1, 0, 1, 1, false, false};

std::string text_of(std::span<const Relative> members) {
  std::string out;
  for (const Relative& m : members)
    out += fmt::format("{}: child of {}, group {}, session {}{}{}\n", m.pid, m.parent, m.group,
                       m.session, m.subreaper ? ", subreaper" : "", m.zombie ? ", zombie" : "");
  return out;
}

// What some processes would have done with one another since the capsule began: `choices` say what.
std::vector<Relative> lived(const std::vector<std::uint8_t>& choices, bool subreapers) {
  Family family(init);
  pid_t next = 3;
  for (std::size_t i = 0; i + 1 < choices.size(); i += 2) {
    std::vector<pid_t> alive;
    for (const Relative& m : family.members())
      if (!m.zombie) alive.push_back(m.pid);
    const pid_t pid = alive[choices[i] % alive.size()];
    const unsigned what = choices[i + 1] % 16, more = choices[i + 1] / 16;
    FamilyStep step{Kind::fork, next, pid};
    if (what == 6 || what == 7) step = {Kind::new_session, pid};
    if (what == 8 || what == 9) step = {Kind::join_group, pid, 0, pid};
    if (what == 10)
      step = {Kind::join_group, pid, 0, family.members()[more % family.members().size()].group};
    if (what == 11 && subreapers) step = {Kind::subreaper, pid};
    if (what >= 12) step = {what == 15 ? Kind::end_zombie : Kind::end, pid};
    if (pid == init.pid && step.kind != Kind::fork) continue;
    if (step.kind == Kind::fork) ++next;
    (void)family.apply(step);  // What can't be done isn't.
    // Whoever is adopted by init when it has ended is reaped.
    if (what >= 12) {
      std::vector<pid_t> reaped;
      for (const Relative& m : family.members())
        if (m.zombie && m.parent == init.pid) reaped.push_back(m.pid);
      for (pid_t gone : reaped) family.forget(gone);
    }
  }
  return {family.members().begin() + 1, family.members().end()};
}

// Applies the plan to a family of its own: plan_family could have looked at the wrong one.
void becomes(std::span<const Relative> wanted, const std::vector<FamilyStep>& plan,
             Family family = Family(init)) {
  for (const FamilyStep& step : plan) {
    Result<void> done = family.apply(step);
    ASSERT_TRUE(done.ok()) << done.error().what();
  }
  ASSERT_EQ(family.members().size(), wanted.size() + 1);
  for (const Relative& w : wanted) {
    const Relative* got = family.find(w.pid);
    ASSERT_NE(got, nullptr) << w.pid;
    EXPECT_EQ(got->parent, w.parent) << w.pid;
    EXPECT_EQ(got->group, w.group) << w.pid;
    EXPECT_EQ(got->session, w.session) << w.pid;
    EXPECT_EQ(got->subreaper, w.subreaper) << w.pid;
    EXPECT_EQ(got->zombie, w.zombie) << w.pid;
  }
}

void moves(std::vector<Relative> wanted) {
  Result<std::vector<FamilyStep>> plan = plan_family(init, wanted);
  ASSERT_TRUE(plan.ok()) << plan.error().what() << "\n" << text_of(wanted);
  becomes(wanted, *plan);
}

TEST(Family, AShellWithAPipeline) {
  moves({{3, 1, 3, 3}, {4, 3, 4, 3}, {5, 3, 4, 3}, {6, 3, 6, 3}});
}

TEST(Family, AGroupWhoseLeaderHasEnded) { moves({{3, 1, 3, 3}, {5, 3, 4, 3}, {6, 3, 4, 3}}); }

TEST(Family, ADaemonThatForkedTwice) { moves({{3, 1, 3, 3}, {5, 1, 4, 4}}); }

TEST(Family, AnOrphanOfALivingSession) { moves({{3, 1, 3, 3}, {5, 1, 3, 3}, {6, 5, 6, 3}}); }

TEST(Family, AChildFromBeforeItsParentsSession) {
  moves({{3, 1, 1, 1}, {4, 3, 4, 4}, {5, 4, 1, 1}});
}

TEST(Family, AnOrphanOfASubreaper) {
  moves({{3, 1, 3, 3, true}, {5, 3, 4, 4}, {7, 3, 3, 3}, {8, 7, 7, 3}});
}

TEST(Family, Zombies) {
  moves({{3, 1, 3, 3},
         {4, 3, 4, 4, false, true},
         {5, 1, 4, 4},
         {6, 3, 6, 3, false, true},
         {7, 3, 6, 3}});
}

TEST(Family, AGroupThatItsFirstMemberHasLeft) {
  moves({{3, 1, 3, 3}, {4, 3, 5, 3}, {5, 3, 4, 3}, {6, 3, 5, 3}});
}

TEST(Family, WhatCannotBeIsRefusedByName) {
  // Children of an ordinary process in sessions of which it can have been in one only.
  const std::vector<Relative> odd = {{3, 1, 3, 3}, {4, 3, 5, 5}, {6, 3, 7, 7}};
  Result<std::vector<FamilyStep>> plan = plan_family(init, odd);
  ASSERT_FALSE(plan.ok());
  EXPECT_NE(plan.error().what().find("process 6"), std::string::npos) << plan.error().what();
  const std::vector<Relative> circle = {{3, 4, 3, 3}, {4, 3, 3, 3}};
  EXPECT_FALSE(plan_family(init, circle).ok());
  const std::vector<Relative> lost = {{3, 9, 3, 3}};
  EXPECT_FALSE(plan_family(init, lost).ok());
}

RC_GTEST_PROP(FamilyProperty, WhateverProcessesDidIsMadeAnew,
              (const std::vector<std::uint8_t>& choices)) {
  const std::vector<Relative> wanted = lived(choices, false);
  Result<std::vector<FamilyStep>> plan = plan_family(init, wanted);
  RC_CLASSIFY(wanted.size() > 3);
  if (!plan.ok()) RC_FAIL(plan.error().what() + "\n" + text_of(wanted));
  becomes(wanted, *plan);
}

// Where subreapers came and went among sessions that others live in, an order may exist that we
// don't find: that is a refusal, never another family.
RC_GTEST_PROP(FamilyProperty, WithSubreapersItIsMadeAnewOrRefused,
              (const std::vector<std::uint8_t>& choices)) {
  const std::vector<Relative> wanted = lived(choices, true);
  Result<std::vector<FamilyStep>> plan = plan_family(init, wanted);
  RC_CLASSIFY(!plan.ok(), "refused");
  if (plan.ok()) becomes(wanted, *plan);
}

Family family_of(std::span<const Relative> members) {
  Family family(init);
  const auto plan = plan_family(init, members);
  for (const FamilyStep& step : *plan) EXPECT_TRUE(family.apply(step).ok());
  return family;
}

void changes(std::vector<Relative> before, std::vector<Relative> after) {
  const Family now = family_of(before);
  Result<std::vector<FamilyStep>> plan = plan_family_changes(now, after);
  ASSERT_TRUE(plan.ok()) << plan.error().what() << "\n" << text_of(after);
  becomes(after, *plan, now);
}

TEST(FamilyChanges, NothingNewIsNothingToDo) {
  const std::vector<Relative> same = {{3, 1, 3, 3}, {4, 3, 4, 3}};
  EXPECT_TRUE(plan_family_changes(family_of(same), same)->empty());
}

TEST(FamilyChanges, ProcessesComeAndGo) {
  changes({{3, 1, 3, 3}, {4, 3, 4, 3}, {5, 4, 4, 3}}, {{3, 1, 3, 3}, {6, 3, 6, 3}, {7, 6, 6, 3}});
}

TEST(FamilyChanges, ChildrenOfWhoeverEndsAreAdopted) {
  changes({{3, 1, 3, 3, true}, {4, 3, 4, 3}, {5, 4, 4, 3}}, {{3, 1, 3, 3, true}, {5, 3, 4, 3}});
}

TEST(FamilyChanges, SomebodyBeginsASessionAndForks) {
  changes({{3, 1, 3, 3}, {4, 3, 3, 3}}, {{3, 1, 3, 3}, {4, 3, 4, 4}, {5, 4, 3, 3}, {6, 4, 6, 4}});
}

TEST(FamilyChanges, ARunningOneIsAZombieNow) {
  changes({{3, 1, 3, 3}, {4, 3, 3, 3}}, {{3, 1, 3, 3}, {4, 3, 3, 3, false, true}});
}

TEST(FamilyChanges, WhatOnlyHelpersCouldMakeIsToBeginAnew) {
  const std::vector<Relative> before = {{3, 1, 3, 3}};
  const std::vector<Relative> after = {{3, 1, 3, 3}, {5, 1, 4, 4}};
  EXPECT_FALSE(plan_family_changes(family_of(before), after).ok());
}

RC_GTEST_PROP(FamilyProperty, ChangesLeadToTheFamilyWantedOrAreRefused,
              (const std::vector<std::uint8_t>& choices, std::uint8_t at)) {
  const std::size_t cut = choices.size() * at / 512 * 2;
  const std::vector<Relative> before = lived({choices.begin(), choices.begin() + cut}, false);
  const std::vector<Relative> after = lived(choices, false);
  const Family now = family_of(before);
  Result<std::vector<FamilyStep>> plan = plan_family_changes(now, after);
  RC_CLASSIFY(!plan.ok(), "refused");
  if (plan.ok()) becomes(after, *plan, now);
}

TEST(Family, HardlyAnyIsRefused) {
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 5'000; ++i) {
    std::vector<std::uint8_t> choices(random() % 400);
    for (std::uint8_t& choice : choices) choice = static_cast<std::uint8_t>(random());
    refused += !plan_family(init, lived(choices, true)).ok();
  }
  EXPECT_LE(refused, 25);
  std::printf("%d of 5000 refused\n", refused);
}

}  // namespace
}  // namespace godwit::restore
