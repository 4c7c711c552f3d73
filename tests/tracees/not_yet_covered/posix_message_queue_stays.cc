// A POSIX message queue: a message, and a thread in mq_timedreceive.
#include <mqueue.h>

#include "calls.h"
using namespace tracee;

int main() {
  std::string base = "/tracee" + std::to_string(now_ns());
  mq_attr attributes = {};
  attributes.mq_maxmsg = 4;
  attributes.mq_msgsize = 64;
  mqd_t queue = mq_open((base + "a").c_str(), O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
  mqd_t empty = mq_open((base + "b").c_str(), O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
  need(queue >= 0 && empty >= 0 && mq_send(queue, "message", 8, 3) == 0, "mq_open");
  TimedCall receiving("mq_timedreceive", SYS_mq_timedreceive, -ETIMEDOUT, [&](int64_t us) -> long {
    timespec limit = timespec_of_us(now_us(CLOCK_REALTIME) + us + 1000);
    char buffer[64];
    return sys_result(mq_timedreceive(empty, buffer, sizeof buffer, nullptr, &limit));
  });
  ready();
  wait_moved();
  receiving.finish();
  char buffer[64];
  unsigned priority = 0;
  check(mq_receive(queue, buffer, sizeof buffer, &priority) == 8, "mq_receive: errno %d", errno);
  same("message", "message", buffer);
  same("priority", 3u, priority);
  mq_unlink((base + "a").c_str());
  mq_unlink((base + "b").c_str());
  return ok();
}
