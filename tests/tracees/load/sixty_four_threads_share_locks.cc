// 64 threads on mutexes, condition variables, a read-write lock and malloc: nothing is lost, nobody
// sleeps for ever.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr int threads_count = 64, locks_count = 8;
  struct alignas(64) Account {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
    int64_t value = 1000;
  };
  static Account accounts[locks_count];
  static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
  static int64_t pair[2] = {0, 0};  // Always equal under the lock.
  std::atomic<uint64_t> steps[threads_count] = {};
  {
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (int id = 0; id < threads_count; ++id) {
      threads.emplace_back([&, id] {
        for (uint64_t k = 0; !stop; ++k, ++steps[id]) {
          size_t from = mix(k * 64 + id) % locks_count,
                 to = (from + 1 + mix(k) % (locks_count - 1)) % locks_count;
          auto* copy = static_cast<uint8_t*>(malloc(16 + mix(k) % 2000));
          fill(copy, 16, k);
          Account &a = accounts[std::min(from, to)], &b = accounts[std::max(from, to)];
          pthread_mutex_lock(&a.mutex);
          pthread_mutex_lock(&b.mutex);
          --accounts[from].value;
          ++accounts[to].value;
          pthread_cond_signal(&b.changed);
          pthread_mutex_unlock(&b.mutex);
          if (k % 64 == 0) {  // With a limit: nobody need signal any more when the end comes.
            timespec until = timespec_of_us(now_us(CLOCK_REALTIME) + 2000);
            pthread_cond_timedwait(&a.changed, &a.mutex, &until);
          }
          pthread_mutex_unlock(&a.mutex);
          if (k % 16 == 0) {
            pthread_rwlock_wrlock(&rwlock);
            ++pair[0];
            ++pair[1];
          } else {
            pthread_rwlock_rdlock(&rwlock);
          }
          check(pair[0] == pair[1], "the read-write lock let a writer in beside us");
          pthread_rwlock_unlock(&rwlock);
          if (!check_filled("block of malloc", copy, 16, k)) return;
          free(copy);
        }
      });
    }
    ready();
    wait_moved();
    uint64_t before[threads_count];
    for (int i = 0; i < threads_count; ++i) before[i] = steps[i];
    for (int i = 0; i < threads_count; ++i)
      if (!check(eventually([&] { return steps[i] > before[i]; }), "thread %d stands still", i))
        _exit(1);
    stop = true;
    for (auto& t : threads) t.join();
  }
  int64_t sum = 0;
  for (Account& a : accounts) sum += a.value;
  same("sum of the accounts", 1000 * locks_count, sum);
  return ok();
}
