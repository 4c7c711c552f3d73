// A System V message queue: messages under way, and a thread in msgrcv.
#include <sys/msg.h>

#include "calls.h"
using namespace tracee;

struct Message {
  long type;
  char text[16];
};

int main() {
  int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
  need(id >= 0, "msgget");
  Message message = {5, "five"};
  need(msgsnd(id, &message, sizeof message.text, 0) == 0, "msgsnd");
  Message got = {};
  BlockedCall waiting("msgrcv", SYS_msgrcv, [&]() -> long {
    return sys_result(msgrcv(id, &got, sizeof got.text, 7, 0));
  });
  ready();
  wait_moved();
  waiting.check_still_blocked();
  message = {7, "seven"};
  check(msgsnd(id, &message, sizeof message.text, 0) == 0, "msgsnd: errno %d", errno);
  waiting.check_returns(sizeof got.text);
  same("message waited for", "seven", got.text);
  check(msgrcv(id, &got, sizeof got.text, 5, IPC_NOWAIT) == sizeof got.text, "msgrcv: errno %d",
        errno);
  same("message under way", "five", got.text);
  msgctl(id, IPC_RMID, nullptr);
  return ok();
}
