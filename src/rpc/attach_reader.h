// The reading half of a served attachment: a thread of its own, so that a slow client's input and
// output don't wait for each other.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "base/thread_name.h"
#include "rpc/api.h"

namespace godwit::rpc {

class AttachReader {
 public:
  // `request` returns false to read no more; `end` is called once after the last one.
  AttachReader(AttachChannel& channel, std::function<bool(const api::AttachRequest&)> request,
               std::function<void()> end)
      : channel_(channel), thread_([this, request = std::move(request), end = std::move(end)] {
          name_thread("attached");
          api::AttachRequest message;
          while (channel_.read(message) && request(message)) {
          }
          end();
          const std::lock_guard lock(mutex_);
          ended_ = true;
          changed_.notify_all();
        }) {}

  // The client ends its side when it has read the last reply; one that doesn't is cut off.
  ~AttachReader() {
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait_for(lock, patience, [&] { return ended_; })) channel_.cancel();
    }
    thread_.join();
  }
  AttachReader(const AttachReader&) = delete;
  AttachReader& operator=(const AttachReader&) = delete;

 private:
  static constexpr std::chrono::seconds patience{5};

  AttachChannel& channel_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  std::thread thread_;  // Last: it uses the others.
};

}  // namespace godwit::rpc
