// The main thread has ended by pthread_exit; the process lives on in another thread.
#include "tracee.h"
using namespace tracee;

int main() {
  pid_t leader = getpid();
  std::thread([leader] {
    std::string state;
    need(eventually([&] {
           std::string stat = read_file("/proc/self/task/" + std::to_string(leader) + "/stat");
           size_t end = stat.rfind(')');
           return end != std::string::npos && stat.substr(end + 2, 1) == "Z";
         }),
         "the leader lives");
    ready();
    wait_moved();
    same("pid", leader, static_cast<pid_t>(syscall(SYS_getpid)));
    check(gettid_now() != leader, "this is the leader");
    _exit(ok());
  }).detach();
  pthread_exit(nullptr);
}
