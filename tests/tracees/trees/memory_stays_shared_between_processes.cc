// Shared anonymous memory, a memfd and a file, each in two processes that take turns by a futex;
// and private memory of before the fork, which each has for itself.
#include <linux/futex.h>

#include "family.h"
using namespace tracee;

namespace {

struct Board {
  std::atomic<uint32_t> turn;
  uint64_t count;
};

void await_turn(Board& board, uint32_t who) {
  for (uint32_t now; (now = board.turn.load()) % 2 != who;)
    syscall(SYS_futex, &board.turn, FUTEX_WAIT, now, nullptr, nullptr, 0);
}

void pass_turn(Board& board) {
  board.turn.fetch_add(1);
  syscall(SYS_futex, &board.turn, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

}  // namespace

int main() {
  constexpr size_t bytes = 1 * MiB;
  auto* anonymous = map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  const int memfd = memfd_create("shared", MFD_CLOEXEC);
  need(memfd >= 0 && ftruncate(memfd, bytes) == 0, "memfd");
  auto* file = map(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd);
  auto* own = map(bytes);
  fill(own, bytes, 7);
  auto* board = new (anonymous) Board{};
  const pid_t child = fork();
  if (child == 0) {
    fill(own, bytes / 2, 8);  // The rest stays the parent's pages.
    for (;;) {
      await_turn(*board, 1);
      ++board->count;
      auto* words = reinterpret_cast<uint64_t*>(file);
      words[board->count % (bytes / 8)] = board->count;
      if (!check_filled("the child's half", own, bytes / 2, 8) ||
          !check_filled("the child's other half", own + bytes / 2, bytes / 2, 7 + bytes / 16))
        _exit(1);
      pass_turn(*board);
    }
  }
  auto turn = [&] {
    const uint64_t before = board->count;
    pass_turn(*board);
    await_turn(*board, 0);
    same("count", before + 1, board->count);
    same("the file", board->count, reinterpret_cast<uint64_t*>(file)[board->count % (bytes / 8)]);
  };
  turn();
  ready();
  while (!moved()) {
    turn();
    need(kill(child, 0) == 0 && failures == 0, "the child");
  }
  for (int i = 0; i < 100; ++i) turn();
  check_filled("our own memory", own, bytes, 7);
  kill(child, SIGKILL);
  same("waitpid", child, waitpid(child, nullptr, 0));
  return ok();
}
