// pthread_cancel after the move: cleanup handlers and destructors of thread-specific data run.
#include "tracee.h"
using namespace tracee;

std::atomic<int> cleanups{0}, destructors{0};

int main() {
  pthread_key_t key;
  need(pthread_key_create(&key, [](void* p) { destructors += p == &destructors; }) == 0,
       "pthread_key_create");
  std::atomic<bool> started{false};
  std::pair<pthread_key_t, std::atomic<bool>*> argument = {key, &started};
  pthread_t thread;
  auto body = [](void* p) -> void* {
    auto* a = static_cast<std::pair<pthread_key_t, std::atomic<bool>*>*>(p);
    pthread_setspecific(a->first, &destructors);
    pthread_cleanup_push([](void*) { ++cleanups; }, nullptr);
    *a->second = true;
    for (;;) sleep(1000);
    pthread_cleanup_pop(0);
    return nullptr;
  };
  need(pthread_create(&thread, nullptr, body, &argument) == 0, "pthread_create");
  need(eventually([&] { return started.load(); }), "thread");
  ready();
  wait_moved();
  check(pthread_cancel(thread) == 0, "pthread_cancel");
  void* result = nullptr;
  check(pthread_join(thread, &result) == 0, "pthread_join");
  check(result == PTHREAD_CANCELED, "the thread wasn't cancelled");
  same("cleanup handlers", 1, cleanups.load());
  same("destructors", 1, destructors.load());
  return ok();
}
