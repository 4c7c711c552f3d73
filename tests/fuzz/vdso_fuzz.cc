// The image of another kernel's vdso comes from the source: it is parsed, and its functions are led
// elsewhere, within its bounds whatever its headers say.
#include <cstddef>
#include <vector>

#include "sys/vdso.h"

using namespace godwit;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::vector<std::byte> image(size);
  for (std::size_t i = 0; i < size; ++i) image[i] = static_cast<std::byte>(data[i]);
  Result<sys::VdsoImage> parsed = sys::parse_vdso(image);
  if (!parsed.ok()) return 0;
  for (std::uint32_t offset : parsed->offsets) INVARIANT(offset < size);
  // An error is an answer too; what matters is that only `image` is written, for the sanitizer to see.
  static_cast<void>(sys::forward_vdso(image, 0x7fff'ffff'f000).ok());
  return 0;
}

std::vector<std::uint8_t> fuzz_seed_input() {
  static const std::string vdso = std::move(sys::own_vdso()).value();
  return {vdso.begin(), vdso.end()};
}
