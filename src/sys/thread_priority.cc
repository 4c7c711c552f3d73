#include "sys/thread_priority.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

namespace godwit::sys {

bool raise_thread_priority() {
  sched_param param{};
  param.sched_priority = 1;
  if (::pthread_setschedparam(::pthread_self(), SCHED_RR, &param) == 0) return true;
  return ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), -15) == 0;
}

void set_thread_name(const char* name) { ::pthread_setname_np(::pthread_self(), name); }

}  // namespace godwit::sys
