// A System V shared memory segment, attached and by its key.
#include <sys/shm.h>

#include "tracee.h"
using namespace tracee;

int main() {
  key_t key = static_cast<key_t>(mix(static_cast<uint64_t>(now_ns())) & 0x7fffffff);
  int id = shmget(key, 1 * MiB, IPC_CREAT | IPC_EXCL | 0600);
  need(id >= 0, "shmget");
  void* p = shmat(id, nullptr, 0);
  need(p != reinterpret_cast<void*>(-1), "shmat");
  fill(p, 1 * MiB, 4);
  ready();
  wait_moved();
  check_filled("segment", p, 1 * MiB, 4);
  same("id by its key", id, shmget(key, 0, 0));
  shmid_ds state = {};
  check(shmctl(id, IPC_STAT, &state) == 0, "shmctl: errno %d", errno);
  same("attached", 1UL, static_cast<unsigned long>(state.shm_nattch));
  shmctl(id, IPC_RMID, nullptr);
  return ok();
}
