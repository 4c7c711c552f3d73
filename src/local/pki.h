// A certificate authority for one cluster, and certificates for its nodes: EC P-256, PEM.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"

namespace godwit::local {

struct Credentials {
  std::string certificate;
  std::string key;  // PKCS#8
};

// Its key is never written anywhere: once the nodes have their certificates it is forgotten.
class Authority {
 public:
  static Result<Authority> create(const std::string& cluster);
  Authority(Authority&&) noexcept;
  ~Authority();

  std::string certificate() const;
  // For TLS in both roles. CN and DNS name: `node`; IP: `address`.
  Result<Credentials> issue(const std::string& node, const std::string& address) const;

 private:
  struct Parts;
  explicit Authority(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::local
