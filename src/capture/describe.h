// A process tree in words: image.proto. What can be read while the program runs, and makes a useful
// beginning for the target, is `describe_live`; what is exact is FrozenTree::describe (freeze.h).
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "capture/freeze.h"
#include "image/image.pb.h"

namespace godwit::capture {

struct LiveDescription {
  image::Capsule capsule;
  std::map<pid_t, pid_t> node_pids;  // By the capsule's pid.
  // Private files without a name: where their content is opened, by id.
  std::map<std::uint32_t, std::string> private_file_places;
};

// Touches nothing. Processes, mappings, files, credentials; no registers, no handlers. Since the
// program runs, parts may be of different moments.
Result<LiveDescription> describe_live(const TreeRef& tree);

// Every reason why the tree can't move, in words for people, with the thread or descriptor. Touches
// nothing.
Result<std::vector<std::string>> preflight(const TreeRef& tree);
// The same of these processes only, as this node numbers them; they may stand, stopped by us.
Result<std::vector<std::string>> preflight(const TreeRef& tree, const std::set<pid_t>& pids);

// The same for what only the program itself can be asked: stops it for about half a millisecond and
// injects. Preconditions: preflight found nothing; the tree runs, and nobody else stops it.
// `sleeps`: those known from the last stop; afterwards those that this stop has interrupted.
// `kernel_needs`: what the target's kernel must have (sys/kernel_features.h).
Result<std::vector<std::string>> preflight_inside(const TreeRef& tree,
                                                  std::vector<sys::InterruptedSleep>& sleeps,
                                                  std::uint64_t* kernel_needs = nullptr);

// The same of some processes of a tree that stands still, for those that have come, or executed
// another program, since the rest was asked.
Result<std::vector<std::string>> preflight_inside(const TreeRef& tree, FrozenTree& frozen,
                                                  const std::set<pid_t>& pids,
                                                  std::uint64_t* kernel_needs);

// A userfaultfd of the process, made inside it and fetched here; inside, it is closed again.
// UFFDIO_API hasn't been called. A full one where the process may have it, else one for user mode
// only.
Result<UniqueFd> make_userfaultfd(FrozenTree& tree, FrozenProcess& process);

}  // namespace godwit::capture
