#include "sys/thread_priority.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

namespace godwit::sys {

bool raise_thread_priority() {
  sched_param param{};
  param.sched_priority = 1;
  // Not for threads that this one starts: those copy in bulk.
  if (::sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &param) == 0) return true;
  return ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), -15) == 0;
}

void set_thread_name(const char* name) { ::pthread_setname_np(::pthread_self(), name); }

}  // namespace godwit::sys
