// For tests that let a process's n-th system call fail: with what it may fail in earnest, on a
// machine that is short of something, whose other end is gone, or whose disk is broken.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <sys/user.h>

#include <cerrno>
#include <cstdint>
#include <initializer_list>

namespace godwit::sys {

// `choice` chooses among several. 0: a call that can't fail, or whose failure nobody is told.
inline int plausible_error(const user_regs_struct& entry, std::uint64_t choice) {
  auto one_of = [&](std::initializer_list<int> errors) {
    return errors.begin()[choice % errors.size()];
  };
  switch (entry.orig_rax) {
    case SYS_exit:
    case SYS_exit_group:
    case SYS_rt_sigreturn:
    case SYS_rt_sigprocmask:
    case SYS_rt_sigaction:
    case SYS_sched_yield:
    case SYS_getpid:
    case SYS_gettid:
    case SYS_getppid:
    case SYS_getuid:
    case SYS_geteuid:
    case SYS_set_tid_address:
    case SYS_arch_prctl:
    case SYS_restart_syscall:
    case SYS_close:  // Whatever it says, the descriptor is gone.
    case SYS_close_range:
      return 0;
    // The C library takes every other answer for a reason to abort.
    case SYS_futex:
      // Only waiting can fail.
      if ((entry.rsi & FUTEX_CMD_MASK) == FUTEX_WAKE) return 0;
      return one_of({EAGAIN, EINTR});
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
    case SYS_poll:
    case SYS_ppoll:
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
      return EINTR;
    case SYS_wait4:
    case SYS_waitid:
      return one_of({EINTR, ECHILD});
    case SYS_ptrace:
      return one_of({ESRCH, EIO, EPERM});
    case SYS_process_vm_readv:
    case SYS_process_vm_writev:
      return one_of({EFAULT, ENOMEM, ESRCH});
    case SYS_open:
    case SYS_openat:
    case SYS_pidfd_open:
    case SYS_pidfd_getfd:
    case SYS_socket:
    case SYS_accept4:
    case SYS_dup:
    case SYS_userfaultfd:
    case SYS_memfd_create:
      return one_of({EMFILE, ENFILE, ENOMEM});
    case SYS_mmap:
    case SYS_munmap:
    case SYS_mremap:
    case SYS_mprotect:
    case SYS_madvise:
    case SYS_brk:
      return ENOMEM;
    case SYS_clone:
    case SYS_clone3:
    case SYS_fork:
    case SYS_vfork:
      return one_of({EAGAIN, ENOMEM});
    case SYS_sendto:
    case SYS_sendmsg:
      return one_of({EPIPE, ENOBUFS, ECONNRESET});
    case SYS_recvfrom:
    case SYS_recvmsg:
      return one_of({ECONNRESET, ENOMEM});
    case SYS_connect:
      return one_of({ECONNREFUSED, ENETUNREACH});
    case SYS_write:
    case SYS_writev:
    case SYS_pwrite64:
    case SYS_ftruncate:
    case SYS_fallocate:
    case SYS_fsync:
    case SYS_fdatasync:
    case SYS_mkdir:
    case SYS_rename:
      return one_of({EIO, ENOSPC});
    default:
      return one_of({EIO, ENOMEM});
  }
}

}  // namespace godwit::sys
