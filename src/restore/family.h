// In which order the processes of a tree are forked so that parents, sessions and process groups
// become what they were. Pure; docs/TREES.md.
//
// What the kernel allows: a child has its forker's session and group; setsid(2) makes a session and
// a group of one's own number, setpgid(2) joins a group of one's session in which somebody is left.
// A process whose parent ends becomes the child of the nearest ancestor that is a subreaper, else
// of init. So a process whose parent has another session was either forked before its parent's
// setsid, or by somebody who has ended since: a helper does that here.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace godwit::restore {

// In the capsule's numbers.
struct Relative {
  pid_t pid = 0, parent = 0, group = 0, session = 0;
  bool subreaper = false;
  bool zombie = false;  // Has ended, and its parent hasn't waited for it.
  bool operator==(const Relative&) const = default;
};

struct FamilyStep {
  enum class Kind {
    fork,         // `pid` is forked by `by`.
    new_session,  // `pid`: setsid.
    subreaper,    // `pid`: prctl(PR_SET_CHILD_SUBREAPER).
    join_group,   // `pid`: setpgid(0, group); its own number: makes the group.
    end,          // `pid`, a child of `by`, ends and is waited for; its children go to their
                  // adopter.
    end_zombie,   // `pid` ends, and isn't waited for.
  };
  Kind kind;
  pid_t pid = 0;
  pid_t by = 0;
  pid_t group = 0;
  bool operator==(const FamilyStep&) const = default;
};

// What the kernel would make of steps.
class Family {
 public:
  explicit Family(const Relative& init) : members_{init} { members_.front().parent = 0; }

  Result<void> apply(const FamilyStep& step);
  void forget(pid_t zombie);  // Its parent has waited for it.
  const std::vector<Relative>& members() const { return members_; }
  const Relative* find(pid_t pid) const;

 private:
  Relative* member(pid_t pid);
  bool group_exists(pid_t group, pid_t session) const;
  pid_t adopter_of_children(const Relative& ended) const;

  std::vector<Relative> members_;  // init first.
};

// `init` is there already: with the session and group that it keeps; it adopts whom nobody else
// does. The rest in any order. `taken`: numbers that no helper may have (threads). Fails with
// Errc::unsupported, naming the process, where no order leads there. What it returns has been tried
// on a `Family`.
Result<std::vector<FamilyStep>> plan_family(const Relative& init, std::span<const Relative> rest,
                                            std::span<const pid_t> taken = {});

// From what is there already: who isn't wanted any more ends, who has come is forked by its parent.
// Fails with Errc::unsupported where that would lead to another family; then it is to be made anew.
Result<std::vector<FamilyStep>> plan_family_changes(const Family& now,
                                                    std::span<const Relative> wanted);

}  // namespace godwit::restore
