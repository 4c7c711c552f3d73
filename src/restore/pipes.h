// Pipes and FIFOs of a tree: made and filled by us, their ends given to whoever had them.
#pragma once

#include <map>

#include "base/unique_fd.h"
#include "image/image.pb.h"
#include "restore/private_files.h"

namespace godwit::restore {

class Pipes {
 public:
  explicit Pipes(const PrivateFiles& files) : files_(files) {}

  // Makes every pipe of the image, with its size and content. FIFOs exist already.
  Result<void> make_all(const image::Capsule& capsule);
  // A description of an end, without the flags that can be set later.
  Result<UniqueFd> open(const image::OpenFile& file);
  // Our own ends go: from here a pipe has only the ends that the program has.
  void close_all() { pipes_.clear(); }

 private:
  struct Pipe {
    UniqueFd reader, writer;  // As pipe2(2) made them: given away to the first who asks.
    UniqueFd way;             // The same pipe as long as we need it.
  };
  Result<Pipe> make(const image::Pipe& pipe, const image::FileRef* fifo) const;

  const PrivateFiles& files_;
  std::map<std::uint32_t, Pipe> pipes_;  // By Pipe id.
};

}  // namespace godwit::restore
