#include "sys/exec_watch.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/io.h"
#include "sys/proc.h"

namespace godwit::sys {

Result<ExecWatch> ExecWatch::open(pid_t pid) {
  UniqueFd memory = TRY(open_fd(proc_path(pid, "mem"), O_RDONLY));
  // Were this the vdso of another program already, the first look says so.
  return ExecWatch(pid, std::move(memory), TRY(find_vdso(pid)));
}

bool ExecWatch::executed() const {
  char byte;
  // Its end, where the stubs are, is certain to be there. Of a program that came from another
  // kernel the start is only a bound, with nothing mapped at it.
  return ::pread(memory_.get(), &byte, 1, static_cast<off_t>(vdso_.end - 1)) != 1;
}

}  // namespace godwit::sys
