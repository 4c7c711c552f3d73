// godwit-init: PID 1 of a capsule. Started by the shell only, with one option a line below.
#include <cstdio>
#include <cstring>

#include "capsule/init/starter.h"

namespace {

using godwit::init::cgroups_max;
using godwit::init::StartOrder;

// "v2::PATH" or "v1:CONTROLLERS:PATH"; changes `text`.
bool add_cgroup_mount(StartOrder& order, char* text) {
  char* first = std::strchr(text, ':');
  char* second = first == nullptr ? nullptr : std::strchr(first + 1, ':');
  if (second == nullptr || order.cgroup_mounts_count == cgroups_max) return false;
  *first = *second = 0;
  order.cgroup_mounts[order.cgroup_mounts_count++] = {std::strcmp(text, "v2") == 0, first + 1,
                                                      second + 1};
  return true;
}

template <int room>
bool add(const char* (&list)[room], int& count, const char* value) {
  if (count == room) return false;
  list[count++] = value;
  return true;
}

bool parse(StartOrder& order, char* argument) {
  char* value = std::strchr(argument, '=');
  if (value == nullptr) return false;
  *value++ = 0;
  auto is = [&](const char* name) { return std::strcmp(argument, name) == 0; };
  if (is("--run-dir")) return (order.run_dir = value) != nullptr;
  if (is("--tmp-dir")) return (order.tmp_dir = value) != nullptr;
  if (is("--hostname")) return (order.hostname = value) != nullptr;
  if (is("--tree-v2")) return (order.tree_v2 = value) != nullptr;
  if (is("--init-v2")) return (order.init_v2 = value) != nullptr;
  // Pairs of the same hierarchies in the same order.
  if (is("--tree-v1")) return add(order.tree_v1, order.tree_v1_count, value);
  if (is("--init-v1")) return add(order.init_v1, order.init_v1_count, value);
  if (is("--tree-freezer")) return (order.tree_freezer = value) != nullptr;
  if (is("--init-freezer")) return (order.init_freezer = value) != nullptr;
  if (is("--hide")) return add(order.hidden, order.hidden_count, value);
  if (is("--cgroup-mount")) return add_cgroup_mount(order, value);
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || std::strcmp(argv[1], "--start") != 0) {
    std::fprintf(stderr, "godwit-init holds a capsule; godwitd starts it.\n");
    return 2;
  }
  StartOrder order;
  for (int i = 2; i < argc; ++i) {
    if (!parse(order, argv[i])) {
      std::fprintf(stderr, "godwit-init: don't understand %s\n", argv[i]);
      return 2;
    }
  }
  bool complete = order.run_dir != nullptr && order.tmp_dir != nullptr &&
                  order.hostname != nullptr &&
                  (order.tree_v2 == nullptr) == (order.init_v2 == nullptr) &&
                  (order.tree_freezer == nullptr) == (order.init_freezer == nullptr) &&
                  order.tree_v1_count == order.init_v1_count;
  if (!complete) {
    std::fprintf(stderr, "godwit-init: an option is missing\n");
    return 2;
  }
  return godwit::init::start(order);
}
