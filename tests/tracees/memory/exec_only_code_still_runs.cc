// Code made at run time: written through one view of a memfd, executed through another; and patched
// text.
#include "tracee.h"
using namespace tracee;

// mov eax, imm32; ret
void emit(uint8_t* at, uint32_t value) {
  at[0] = 0xb8;
  memcpy(at + 1, &value, 4);
  at[5] = 0xc3;
}

uint32_t call(uint8_t* at) { return reinterpret_cast<uint32_t (*)()>(at)(); }

int main() {
  int fd = memfd_create("jit", 0);
  need(fd >= 0 && ftruncate(fd, page_size) == 0, "memfd");
  uint8_t* write_view = map(page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  uint8_t* run_view = map(page_size, PROT_READ | PROT_EXEC, MAP_SHARED, fd);
  close(fd);
  uint8_t* only = map(page_size);
  emit(only, 4711);
  need(mprotect(only, page_size, PROT_EXEC) == 0, "mprotect(PROT_EXEC)");
  uint32_t value = 0;
  ready();
  while (!moved()) {
    emit(write_view, ++value);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!same("value of generated code", value, call(run_view))) return 1;
    usleep(50);
  }
  same("value of code that can only be executed", 4711u, call(only));
  emit(write_view, 99);
  same("value of code patched after the move", 99u, call(run_view));
  return ok();
}
