// A program that an outside witness can follow, and that verifies all that a failed migration could
// leave behind in it.
//
//   witness FILE MIB [FROM]
//
// Appends the numbers FROM, FROM + 1, ... to FILE, eight bytes each: a second copy, however short
// it ran, would write a number twice, and one that went back in time too. Its memory changes with
// each number by a rule, so that every byte is known; other threads hold known values in all
// registers, sleep with timeouts that must not be early, and look whether their signal masks and
// the process's descriptors are what they were.
//
// "check" on stdin ends it: all memory is looked at, "ok" and how many numbers were written. What
// is to happen in the middle of a migration is asked for by signals: SIGUSR1 exits with 7, SIGUSR2
// executes this program again (it goes on counting), SIGHUP forks a child that lives for a moment,
// SIGTERM kills itself.
#include <dirent.h>

#include "tracee.h"
using namespace tracee;

namespace {

constexpr uint64_t words_per_page = page_size / 8;
constexpr int64_t between_numbers_us = 200;

std::atomic<int> asked{0};

struct Counter {
  int file;
  uint64_t from, next;
  std::vector<uint64_t> memory;

  uint64_t pages() const { return memory.size() / words_per_page; }
  // Number n is added to one word in each of these pages.
  uint64_t word_of(uint64_t n) const {
    return n * 7919 % pages() * words_per_page + n / pages() % words_per_page;
  }
  void step() {
    uint64_t& word = memory[word_of(next)];
    word += next + 1;
    need(write(file, &next, sizeof next) == sizeof next, "write of number %lu", next);
    ++next;
  }
  void verify() const {
    std::vector<uint64_t> expected(memory.size());
    for (uint64_t i = 0; i < expected.size(); i += words_per_page / 4) expected[i] = i;
    for (uint64_t n = from; n < next; ++n) expected[word_of(n)] += n + 1;
    for (uint64_t i = 0; i < expected.size(); ++i)
      if (!check(memory[i] == expected[i], "word %lu is %lx, expected %lx", i, memory[i],
                 expected[i]))
        return;
  }
};

// A million rounds with known values in the registers that a compiler leaves to us.
void hold_registers() {
  uint64_t out[9];
  asm volatile(
      "mov $0x11, %%rbx\n mov $0x22, %%r8\n mov $0x33, %%r9\n mov $0x44, %%r10\n"
      "mov $0x55, %%r11\n mov $0x66, %%r12\n mov $0x77, %%r13\n mov $0x88, %%rdx\n"
      "mov $0x99, %%rax\n movq %%rax, %%xmm7\n stc\n"
      "mov $1000000, %%rcx\n"
      "1: lea -1(%%rcx), %%rcx\n jrcxz 2f\n jmp 1b\n"
      "2: mov $0, %%rcx\n jnc 3f\n mov $0xaa, %%rcx\n 3:\n"
      "mov %%rbx, 0(%0)\n mov %%r8, 8(%0)\n mov %%r9, 16(%0)\n mov %%r10, 24(%0)\n"
      "mov %%r11, 32(%0)\n mov %%r12, 40(%0)\n mov %%r13, 48(%0)\n mov %%rdx, 56(%0)\n"
      "movq %%xmm7, 64(%0)\n add %%rcx, 64(%0)\n"
      :
      : "D"(out)
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "xmm7", "memory", "cc");
  for (uint64_t i = 0; i < 8; ++i) same("a register", 0x11 * (i + 1), out[i]);
  same("vector register and carry flag", 0x99 + 0xaa, out[8]);
}

uint64_t own_mask() {
  uint64_t mask = 0;
  syscall(SYS_rt_sigprocmask, SIG_BLOCK, nullptr, &mask, sizeof mask);
  return mask;
}

std::string descriptors() {
  std::vector<int> numbers;
  DIR* dir = opendir("/proc/self/fd");
  need(dir != nullptr, "opendir(/proc/self/fd)");
  while (dirent* entry = readdir(dir))
    if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(dir))
      numbers.push_back(atoi(entry->d_name));
  closedir(dir);
  std::string out;
  for (int number : numbers) out += " " + std::to_string(number);
  return out;
}

// Each call is one that answers EINTR, or too early, after a careless stop.
void sleep_in_turns(uint64_t turn) {
  const int64_t start = now_us();
  const timespec t{0, 3'000'000};
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMAX);
  int got = 0;
  if (turn % 3 == 0) {
    got = nanosleep(&t, nullptr);
  } else if (turn % 3 == 1) {
    got = sigtimedwait(&set, nullptr, &t) == -1 && errno == EAGAIN ? 0 : 1;
  } else {
    got = poll(nullptr, 0, 3);
  }
  check(got == 0, "sleep %lu: errno %d", turn % 3, errno);
  check(now_us() - start >= 3000, "sleep %lu is early: %ld us", turn % 3, now_us() - start);
}

void with_mask_unchanged(const std::atomic<bool>& stop, int blocked, void (*body)(uint64_t)) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, blocked);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const uint64_t mask = own_mask();
  for (uint64_t turn = 0; !stop; ++turn) {
    body(turn);
    same("signal mask", mask, own_mask());
  }
}

void obey(char** argv, Counter& counter) {
  const int signal = asked.exchange(0);
  if (signal == SIGUSR1) exit(7);
  if (signal == SIGTERM) kill(getpid(), SIGKILL);
  if (signal == SIGUSR2) {
    const std::string from = std::to_string(counter.next);
    execl("/proc/self/exe", argv[0], argv[1], argv[2], from.c_str(), nullptr);
    need(false, "execl");
  }
  if (signal == SIGHUP) {
    const pid_t child = fork();
    if (child == 0) {
      usleep(100'000);
      _exit(3);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    same("exit status of a child", 3, WEXITSTATUS(status));
  }
}

}  // namespace

int main(int argc, char** argv) {
  need(argc >= 3, "FILE MIB");
  // Not inherited by what SIGUSR2 executes; nothing is open twice.
  const int file = open(argv[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  need(file >= 0, "open(%s)", argv[1]);
  Counter counter{file, argc > 3 ? strtoul(argv[3], nullptr, 10) : 0, 0, {}};
  counter.next = counter.from;
  counter.memory.resize(strtoul(argv[2], nullptr, 10) * MiB / 8);
  for (uint64_t i = 0; i < counter.memory.size(); i += words_per_page / 4) counter.memory[i] = i;
  struct sigaction action = {};
  action.sa_handler = [](int signal) { asked = signal; };
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGUSR1, SIGUSR2, SIGHUP, SIGTERM}) sigaction(signal, &action, nullptr);
  sigset_t ours;
  sigemptyset(&ours);
  for (int signal : {SIGUSR1, SIGUSR2, SIGHUP, SIGTERM, SIGRTMAX}) sigaddset(&ours, signal);
  pthread_sigmask(SIG_BLOCK, &ours, nullptr);
  Background registers([](std::atomic<bool>& stop) {
    with_mask_unchanged(stop, SIGALRM, [](uint64_t) { hold_registers(); });
  });
  Background sleeper(
      [](std::atomic<bool>& stop) { with_mask_unchanged(stop, SIGQUIT, sleep_in_turns); });
  sigdelset(&ours, SIGRTMAX);
  pthread_sigmask(SIG_UNBLOCK, &ours, nullptr);
  const std::string open_now = descriptors();
  const uint64_t mask = own_mask();
  if (counter.from == 0) ready();
  while (!moved()) {
    counter.step();
    same("signal mask", mask, own_mask());
    if (counter.next % 64 == 0) same("descriptors", open_now, descriptors());
    if (asked != 0) obey(argv, counter);
    usleep(between_numbers_us);
  }
  registers.finish();
  sleeper.finish();
  counter.verify();
  say("numbers %lu", counter.next);
  return ok();
}
