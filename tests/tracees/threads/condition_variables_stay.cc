// Waiters on a condition variable, on a semaphore, at a barrier and on a read-write lock.
#include <semaphore.h>

#include "tracee.h"
using namespace tracee;

int main() {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
  pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
  pthread_barrier_t barrier;
  sem_t semaphore;
  need(pthread_barrier_init(&barrier, nullptr, 3) == 0 && sem_init(&semaphore, 0, 0) == 0, "init");
  need(pthread_rwlock_wrlock(&lock) == 0, "pthread_rwlock_wrlock");
  bool go = false;
  std::atomic<int> begun{0}, through{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      ++begun;
      pthread_mutex_lock(&mutex);
      while (!go) pthread_cond_wait(&condition, &mutex);
      pthread_mutex_unlock(&mutex);
      ++through;
    });
    threads.emplace_back([&] {
      ++begun;
      check(sem_wait(&semaphore) == 0, "sem_wait: errno %d", errno);
      ++through;
    });
    threads.emplace_back([&] {
      ++begun;
      pthread_barrier_wait(&barrier);
      ++through;
    });
    threads.emplace_back([&] {
      ++begun;
      pthread_rwlock_rdlock(&lock);
      ++through;
      pthread_rwlock_unlock(&lock);
    });
  }
  need(eventually([&] { return begun == 8; }), "threads");
  usleep(20'000);
  ready();
  wait_moved();
  same("threads that got through", 0, through.load());
  pthread_mutex_lock(&mutex);
  go = true;
  pthread_cond_broadcast(&condition);
  pthread_mutex_unlock(&mutex);
  sem_post(&semaphore);
  sem_post(&semaphore);
  pthread_barrier_wait(&barrier);
  pthread_rwlock_unlock(&lock);
  for (auto& t : threads) t.join();
  same("threads that got through after the signals", 8, through.load());
  return ok();
}
