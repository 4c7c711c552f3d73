#include "restore/family.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace godwit::restore {

// ---- What the kernel would do --------------------------------------------------------------

const Relative* Family::find(pid_t pid) const {
  auto at = std::find_if(members_.begin(), members_.end(),
                         [&](const Relative& member) { return member.pid == pid; });
  return at == members_.end() ? nullptr : &*at;
}

Relative* Family::member(pid_t pid) { return const_cast<Relative*>(find(pid)); }

bool Family::group_exists(pid_t group, pid_t session) const {
  return std::any_of(members_.begin(), members_.end(), [&](const Relative& member) {
    return member.group == group && member.session == session;
  });
}

pid_t Family::adopter_of_children(const Relative& ended) const {
  for (const Relative* above = find(ended.parent); above != nullptr; above = find(above->parent))
    if (above->subreaper && !above->zombie) return above->pid;
  return members_.front().pid;
}

Result<void> Family::apply(const FamilyStep& step) {
  auto impossible = [&](const char* why) {
    return make_error(Errc::unsupported, "process {}: {}", step.pid, why);
  };
  Relative* actor = member(step.kind == FamilyStep::Kind::fork ? step.by : step.pid);
  if (actor == nullptr) return impossible("whoever should do it isn't there");
  if (actor->zombie) return impossible("whoever should do it has ended");
  switch (step.kind) {
    case FamilyStep::Kind::fork: {
      // Numbers of groups and sessions are numbers of processes: nobody gets one that is in use.
      for (const Relative& member : members_)
        if (member.pid == step.pid || member.group == step.pid || member.session == step.pid)
          return impossible("its number is in use");
      Relative child{step.pid, actor->pid, actor->group, actor->session};
      members_.push_back(child);
      return {};
    }
    case FamilyStep::Kind::new_session:
      if (group_exists(actor->pid, actor->session)) return impossible("it leads a group already");
      actor->session = actor->group = actor->pid;
      return {};
    case FamilyStep::Kind::subreaper:
      actor->subreaper = true;
      return {};
    case FamilyStep::Kind::join_group:
      if (actor->session == actor->pid)
        return impossible("the leader of a session keeps its group");
      if (step.group != actor->pid && !group_exists(step.group, actor->session))
        return impossible("the group doesn't exist in its session");
      actor->group = step.group;
      return {};
    case FamilyStep::Kind::end:
    case FamilyStep::Kind::end_zombie: {
      const Relative ended = *actor;
      const pid_t adopter = adopter_of_children(ended);
      for (Relative& member : members_)
        if (member.parent == ended.pid) member.parent = adopter;
      actor->zombie = true;
      if (step.kind == FamilyStep::Kind::end) forget(ended.pid);
      return {};
    }
  }
  return {};
}

void Family::forget(pid_t zombie) {
  std::erase_if(members_, [&](const Relative& member) { return member.pid == zombie; });
}

// ---- Planning ------------------------------------------------------------------------------

namespace {

constexpr pid_t first_free = 3;  // 2 is a thread of the capsule's init.

// Which of its children of other sessions an adopter that leads one has forked itself, before it
// did: nothing tells them from those it adopted.
enum class Adopters {
  forked_some,  // Those whose sessions have leaders.
  forked_all,
  forked_none
};

class Planner {
 public:
  Planner(const Relative& init, std::span<const Relative> rest, std::span<const pid_t> taken,
          Adopters adopters)
      : init_(init), taken_(taken.begin(), taken.end()), adopters_(adopters), family_(init) {
    for (const Relative& member : rest) by_pid_[member.pid] = member;
    for (const auto& [pid, member] : by_pid_) children_[member.parent].push_back(pid);
  }

  Result<std::vector<FamilyStep>> plan() {
    for (const auto& [pid, member] : by_pid_) {
      if (pid == init_.pid) return no_way(pid, "it is there twice");
      if (member.parent != init_.pid && !by_pid_.contains(member.parent))
        return no_way(pid, "its parent isn't there");
    }
    TRY(birth_sessions(init_.pid, 0));
    if (birth_.size() != by_pid_.size() + 1)
      return make_error(Errc::unsupported, "parents go round in a circle");
    TRY(fork_children(init_.pid));
    TRY(adopted_children());
    TRY(groups());
    TRY(endings());
    TRY(compare());
    return std::move(steps_);
  }

 private:
  static Error no_way(pid_t pid, const char* why) {
    return make_error(Errc::unsupported, "process {} can't be made anew: {}", pid, why);
  }

  const Relative& member(pid_t pid) const { return pid == init_.pid ? init_ : by_pid_.at(pid); }
  std::span<const pid_t> children(pid_t pid) const {
    auto at = children_.find(pid);
    return at == children_.end() ? std::span<const pid_t>() : at->second;
  }
  bool has_leader(pid_t session) const {
    return session == init_.session || by_pid_.contains(session);
  }
  bool adopts(pid_t pid) const { return pid == init_.pid || member(pid).subreaper; }

  Result<void> take(FamilyStep step) {
    TRY(family_.apply(step));
    steps_.push_back(step);
    return {};
  }

  // The session in which each process must be born; 0: any. From the leaves up, since a leader's
  // children of another session were there before its own.
  Result<void> birth_sessions(pid_t pid, int depth) {
    if (depth > static_cast<int>(by_pid_.size()))
      return make_error(Errc::unsupported, "parents go round in a circle");
    const Relative& self = member(pid);
    std::set<pid_t> before;  // Sessions of children that aren't this one's.
    for (pid_t child : children(pid)) {
      TRY(birth_sessions(child, depth + 1));
      if (const pid_t born = birth_[child]; born != 0 && born != self.session) before.insert(born);
    }
    pid_t& born = birth_[pid];
    if (self.session != pid || pid == init_.pid) {
      born = self.session;
      return {};
    }
    if (adopts(pid))
      std::erase_if(before, [&](pid_t session) {
        return adopters_ == Adopters::forked_none ||
               (adopters_ == Adopters::forked_some && !has_leader(session));
      });
    if (!before.empty()) born = *before.begin();
    return {};
  }

  // All descendants of `pid`, which is there, but those that somebody else must fork for it.
  Result<void> fork_children(pid_t pid) {
    const Relative& self = member(pid);
    const bool leads = self.session == pid && pid != init_.pid;
    std::vector<pid_t> now, later;
    for (pid_t child : children(pid)) {
      const pid_t wanted = birth_[child];
      const pid_t present = family_.find(pid)->session;
      if (leads && wanted == present)
        now.push_back(child);
      else if (wanted == 0 || wanted == self.session)
        later.push_back(child);
      else if (adopts(pid))
        orphans_[pid].push_back(child);
      else
        return no_way(child, "its session is neither its parent's nor the one its parent had");
    }
    for (pid_t child : now) {
      TRY(take({FamilyStep::Kind::fork, child, pid}));
      TRY(fork_children(child));
    }
    if (leads) TRY(take({FamilyStep::Kind::new_session, pid}));
    for (pid_t child : later) {
      TRY(take({FamilyStep::Kind::fork, child, pid}));
      TRY(fork_children(child));
    }
    return {};
  }

  // Who would be the parent of the children of a child of `pid`, once that has ended.
  pid_t adopter_below(pid_t pid) const {
    const Relative* above = family_.find(pid);
    while (!above->subreaper && above->pid != init_.pid) above = family_.find(above->parent);
    return above->pid;
  }

  // Any number that nobody has, nor will.
  pid_t free_number() const {
    auto used = [&](pid_t number) {
      if (number == init_.pid || number == init_.group || number == init_.session) return true;
      for (const auto& [pid, m] : by_pid_)
        if (pid == number || m.group == number || m.session == number) return true;
      return taken_.contains(number) || family_.find(number) != nullptr;
    };
    pid_t number = first_free;
    while (used(number)) ++number;
    return number;
  }

  // The children of adopters that these didn't fork themselves. One adopter after the other becomes
  // one, the outermost first: who was adopted by it lost its parent before there was a nearer one.
  Result<void> adopted_children() {
    std::vector<std::pair<int, pid_t>> adopters = {{0, init_.pid}};
    for (const auto& [pid, m] : by_pid_)
      if (m.subreaper) adopters.emplace_back(depth(pid), pid);
    std::sort(adopters.begin(), adopters.end());
    for (const auto& [_, adopter] : adopters) {
      if (adopter != init_.pid) TRY(take({FamilyStep::Kind::subreaper, adopter}));
      const std::size_t helpers_before = helpers_.size();
      TRY(adopt(adopter));
      TRY(end_helpers(helpers_before));
    }
    return {};
  }

  int depth(pid_t pid) const {
    int above = 0;
    for (; pid != init_.pid; pid = member(pid).parent) ++above;
    return above;
  }

  // What the adopted bring along may be whom others of them need, so until none is left.
  Result<void> adopt(pid_t adopter) {
    while (!orphans_[adopter].empty()) {
      std::vector<pid_t> again;
      const std::vector<pid_t> orphans = std::exchange(orphans_[adopter], {});
      for (pid_t pid : orphans) {
        const std::optional<pid_t> helper = TRY(helper_for(birth_.at(pid), adopter));
        if (!helper) {
          again.push_back(pid);
          continue;
        }
        TRY(take({FamilyStep::Kind::fork, pid, *helper}));
        TRY(fork_children(pid));
      }
      if (again.size() == orphans.size())
        return no_way(again.front(), "nobody of its session could have forked it");
      auto& rest = orphans_[adopter];
      rest.insert(rest.end(), again.begin(), again.end());
    }
    return {};
  }

  // A process of `session` whose children go to `adopter` when it ends. None: perhaps later.
  Result<std::optional<pid_t>> helper_for(pid_t session, pid_t adopter) {
    if (!has_leader(session)) {  // The helper is it again.
      const auto& all = family_.members();
      const bool exists = std::any_of(all.begin(), all.end(),
                                      [&](const Relative& one) { return one.session == session; });
      if (!exists) {
        TRY(take({FamilyStep::Kind::fork, session, adopter}));
        TRY(take({FamilyStep::Kind::new_session, session}));
        helpers_.push_back(session);
        return std::optional(session);
      }
    }
    // The same helper serves the next one.
    for (pid_t helper : helpers_) {
      const Relative* one = family_.find(helper);
      if (one != nullptr && one->session == session && adopter_below(one->parent) == adopter)
        return std::optional(helper);
    }
    for (const Relative& one : family_.members()) {
      if (one.session != session || adopter_below(one.pid) != adopter) continue;
      const pid_t forker = one.pid, number = free_number();
      TRY(take({FamilyStep::Kind::fork, number, forker}));
      helpers_.push_back(number);
      return std::optional(number);
    }
    return std::optional<pid_t>();
  }

  // Once everybody is there. What keeps a group alive whose first member has left it or has ended
  // is a helper.
  Result<void> groups() {
    std::map<pid_t, pid_t> wanted;  // Groups that setpgid makes, and a member of each.
    for (const auto& [pid, m] : by_pid_)
      if (m.session != pid && !exists(m.group)) wanted.emplace(m.group, pid);
    for (const auto& [group, pid] : wanted) {
      const auto first = by_pid_.find(group);
      if (first == by_pid_.end()) {
        TRY(take({FamilyStep::Kind::fork, group, pid}));
        helpers_.push_back(group);
      }
      TRY(take({FamilyStep::Kind::join_group, group, 0, group}));
      if (first == by_pid_.end() || first->second.group == group) continue;
      const pid_t keeper = free_number();
      TRY(take({FamilyStep::Kind::fork, keeper, group}));
      helpers_.push_back(keeper);
    }
    for (const auto& [pid, m] : by_pid_)
      if (family_.find(pid)->group != m.group)
        TRY(take({FamilyStep::Kind::join_group, pid, 0, m.group}));
    return {};
  }

  bool exists(pid_t group) const {
    const auto& all = family_.members();
    return std::any_of(all.begin(), all.end(), [&](const Relative& m) { return m.group == group; });
  }

  // The youngest first, and only those made since.
  Result<void> end_helpers(std::size_t until) {
    for (; helpers_.size() > until; helpers_.pop_back()) {
      const pid_t helper = helpers_.back();
      TRY(take({FamilyStep::Kind::end, helper, family_.find(helper)->parent}));
    }
    return {};
  }

  Result<void> endings() {
    TRY(end_helpers(0));
    for (const auto& [pid, m] : by_pid_)
      if (m.zombie) TRY(take({FamilyStep::Kind::end_zombie, pid}));
    return {};
  }

  Result<void> compare() const {
    for (const auto& [pid, wanted] : by_pid_) {
      const Relative* got = family_.find(pid);
      if (got == nullptr) return no_way(pid, "nobody forks it");
      if (got->parent != wanted.parent) return no_way(pid, "its parent would be another one");
      if (got->session != wanted.session) return no_way(pid, "its session would be another one");
      if (got->group != wanted.group) return no_way(pid, "its group would be another one");
    }
    return {};
  }

  const Relative init_;
  const std::set<pid_t> taken_;
  const Adopters adopters_;
  std::map<pid_t, Relative> by_pid_;
  std::map<pid_t, std::vector<pid_t>> children_;
  std::map<pid_t, pid_t> birth_;
  std::map<pid_t, std::vector<pid_t>> orphans_;  // By adopter; not forked yet.
  std::vector<pid_t> helpers_;
  Family family_;
  std::vector<FamilyStep> steps_;
};

}  // namespace

Result<std::vector<FamilyStep>> plan_family(const Relative& init, std::span<const Relative> rest,
                                            std::span<const pid_t> taken) {
  auto plan = Planner(init, rest, taken, Adopters::forked_some).plan();
  for (Adopters other : {Adopters::forked_all, Adopters::forked_none}) {
    if (plan.ok()) break;
    if (auto found = Planner(init, rest, taken, other).plan(); found.ok()) plan = std::move(found);
  }
  return plan;
}

// ---- Changes -------------------------------------------------------------------------------

namespace {

class Changes {
 public:
  Changes(const Family& now, std::span<const Relative> wanted) : family_(now), wanted_(wanted) {}

  Result<std::vector<FamilyStep>> plan() {
    TRY(end_whoever_has_gone());
    TRY(fork_whoever_has_come());
    for (const Relative& w : wanted_) {
      const Relative* one = family_.find(w.pid);
      if (one == nullptr) return no_way(w.pid);
      if (w.subreaper && !one->subreaper) TRY(take({FamilyStep::Kind::subreaper, w.pid}));
    }
    TRY(groups());
    for (const Relative& w : wanted_)
      if (w.zombie && !family_.find(w.pid)->zombie)
        TRY(take({FamilyStep::Kind::end_zombie, w.pid}));
    for (const Relative& w : wanted_)
      if (*family_.find(w.pid) != w) return no_way(w.pid);
    return std::move(steps_);
  }

 private:
  static Error no_way(pid_t pid) {
    return make_error(Errc::unsupported, "process {} can't become what it is now", pid);
  }

  Result<void> take(FamilyStep step) {
    TRY(family_.apply(step));
    steps_.push_back(step);
    return {};
  }

  const Relative* wanted(pid_t pid) const {
    auto at = std::ranges::find(wanted_, pid, &Relative::pid);
    return at == wanted_.end() ? nullptr : &*at;
  }

  Result<void> end_whoever_has_gone() {
    const std::vector<Relative> before = family_.members();
    for (std::size_t i = 1; i < before.size(); ++i) {  // After init.
      const Relative* still = wanted(before[i].pid);
      if (still != nullptr && (still->zombie || !before[i].zombie)) continue;
      const Relative* one = family_.find(before[i].pid);
      TRY(take({FamilyStep::Kind::end, one->pid, one->parent}));
    }
    return {};
  }

  // Children of a parent's former session come before its setsid, those of the new one after it.
  Result<void> fork_whoever_has_come() {
    for (bool more = true; more;) {
      while (TRY(fork_some())) {
      }
      more = false;
      for (const Relative& w : wanted_) {
        const Relative* one = family_.find(w.pid);
        if (one == nullptr || one->session == w.session || w.session != w.pid) continue;
        TRY(take({FamilyStep::Kind::new_session, w.pid}));
        more = true;
      }
    }
    return {};
  }

  Result<bool> fork_some() {
    bool any = false;
    for (const Relative& w : wanted_) {
      const Relative* parent = family_.find(w.parent);
      if (family_.find(w.pid) != nullptr || parent == nullptr) continue;
      if (w.session != w.pid && w.session != parent->session) continue;
      TRY(take({FamilyStep::Kind::fork, w.pid, w.parent}));
      any = true;
    }
    return any;
  }

  Result<void> groups() {
    for (bool leaders : {true, false})
      for (const Relative& w : wanted_)
        if ((w.group == w.pid) == leaders && family_.find(w.pid)->group != w.group)
          TRY(take({FamilyStep::Kind::join_group, w.pid, 0, w.group}));
    return {};
  }

  Family family_;
  const std::span<const Relative> wanted_;
  std::vector<FamilyStep> steps_;
};

}  // namespace

Result<std::vector<FamilyStep>> plan_family_changes(const Family& now,
                                                    std::span<const Relative> wanted) {
  return Changes(now, wanted).plan();
}

}  // namespace godwit::restore
