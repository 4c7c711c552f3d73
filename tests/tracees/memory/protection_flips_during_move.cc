// mprotect back and forth, as garbage collectors do, with SIGSEGV as write barrier.
#include "tracee.h"
using namespace tracee;

constexpr size_t pages = 64;
uint8_t* area;
std::atomic<uint64_t> barriers{0};

void on_fault(int, siginfo_t* info, void*) {
  auto at = reinterpret_cast<uintptr_t>(info->si_addr) & ~(page_size - 1);
  auto from = reinterpret_cast<uintptr_t>(area);
  if (at < from || at >= from + pages * page_size) _exit(4);
  ++barriers;
  if (mprotect(reinterpret_cast<void*>(at), page_size, PROT_READ | PROT_WRITE) != 0) _exit(5);
}

int main() {
  area = map(pages * page_size);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  need(sigaction(SIGSEGV, &action, nullptr) == 0, "sigaction");
  uint64_t rounds = 0;
  ready();
  for (; !moved(); ++rounds) {
    need(mprotect(area, pages * page_size, PROT_READ) == 0, "mprotect");
    uint64_t before = barriers;
    for (size_t i = 0; i < pages; ++i) {
      auto* word = reinterpret_cast<volatile uint64_t*>(area + i * page_size);
      if (!check(*word == rounds, "page %zu holds %llu in round %llu", i,
                 static_cast<unsigned long long>(*word), static_cast<unsigned long long>(rounds)))
        return 1;
      *word = rounds + 1;
    }
    if (!same("write barriers of a round", before + pages, barriers.load())) return 1;
  }
  check(rounds > 0, "no round was done");
  return ok();
}
