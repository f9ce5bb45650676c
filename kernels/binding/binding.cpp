/* The pybind11 module: kda_args as a Python object, and rungs loaded by path and called through kda_lab.h.
 *
 * It links neither PyTorch nor CUDA. Tensors arrive as (address, batch stride, token stride, head
 * stride, dtype) and addresses as integers; kda_lab/native/call.py makes them from tensors.
 */
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "kda_lab.h"

namespace py = pybind11;

namespace {

/* One rung's library: stays loaded until the process ends, since captured CUDA graphs may hold its code. */
struct Library {
  std::string rung;
  decltype(&kda_cpu_declines) declines;
  decltype(&kda_cpu_workspace_bytes) workspace_bytes;
  decltype(&kda_cpu_forward) forward;
  decltype(&kda_cpu_error) error;

  Library(const std::string &path, const std::string &name) : rung(name) {
    void *handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) throw std::runtime_error("cannot load " + path + ": " + dlerror());
    find(handle, "declines", declines);
    find(handle, "workspace_bytes", workspace_bytes);
    find(handle, "forward", forward);
    find(handle, "error", error);
  }

  template <class F>
  void find(void *handle, const char *function, F &pointer) {
    const std::string symbol = "kda_" + rung + "_" + function;
    pointer = reinterpret_cast<F>(dlsym(handle, symbol.c_str()));
    if (!pointer) throw std::runtime_error("the library of rung " + rung + " exports no " + symbol);
  }

  void run(const kda_args &args) const {
    kda_status status;
    std::string detail;
    {
      py::gil_scoped_release other_threads_may_run;
      status = forward(&args);
      if (status != KDA_OK) detail = error();  // belongs to this thread, so it is read before others run here
    }
    const std::string who = "rung " + rung;
    switch (status) {
      case KDA_OK:
        return;
      case KDA_INVALID:
        throw py::value_error(who + ": an argument contradicts kda_lab.h: " + detail);
      case KDA_UNSUPPORTED:
        throw py::value_error(who + " cannot serve this call: " + detail);
      case KDA_WORKSPACE:
        throw std::runtime_error(who + ": the workspace is missing, misaligned or too small: " + detail);
      case KDA_CUDA:
        throw std::runtime_error(who + ": CUDA refused: " + detail);
    }
    throw std::runtime_error(who + " returned the unknown status " + std::to_string(status));
  }
};

kda_tensor tensor(const py::tuple &t) {
  if (t.size() != 5) throw py::value_error("a tensor is (address, batch, token and head stride, dtype)");
  return {reinterpret_cast<void *>(t[0].cast<uintptr_t>()), t[1].cast<int64_t>(), t[2].cast<int64_t>(),
          t[3].cast<int64_t>(), t[4].cast<int32_t>(), 0};
}

template <class C, class P>
void pointer(C &c, const char *name, P kda_args::*field) {
  c.def_property(
      name, [field](const kda_args &a) { return reinterpret_cast<uintptr_t>(a.*field); },
      [field](kda_args &a, uintptr_t address) { a.*field = reinterpret_cast<P>(address); });
}

}  // namespace

PYBIND11_MODULE(_binding, m) {
  m.attr("ABI_VERSION") = KDA_ABI_VERSION;

  py::class_<kda_args> args(m, "Args");
  args.def(py::init([] {
    auto a = std::make_unique<kda_args>(kda_args{});
    a->abi_version = KDA_ABI_VERSION;
    a->struct_bytes = sizeof(kda_args);
    return a;
  }));
#define FIELD(name) args.def_readwrite(#name, &kda_args::name)
  FIELD(abi_version);
  FIELD(struct_bytes);
  FIELD(batch);
  FIELD(tokens);
  FIELD(sequences);
  FIELD(heads_qk);
  FIELD(heads_v);
  FIELD(dim_k);
  FIELD(dim_v);
  FIELD(scale);
  FIELD(lower_bound);
  FIELD(gate);
  FIELD(beta_kind);
  FIELD(l2norm);
  FIELD(cu_seqlens_bits);
  FIELD(state_dtype);
  FIELD(state_v_first);
  FIELD(state_slots);
  FIELD(workspace_bytes);
  FIELD(threads);
#undef FIELD
#define TENSOR(name) \
  args.def_property(#name, nullptr, [](kda_args &a, const py::tuple &t) { a.name = tensor(t); })
  TENSOR(q);
  TENSOR(k);
  TENSOR(v);
  TENSOR(o);
  TENSOR(g);
  TENSOR(beta);
#undef TENSOR
#define POINTER(name) pointer(args, #name, &kda_args::name)
  POINTER(A_log);
  POINTER(dt_bias);
  POINTER(cu_seqlens);
  POINTER(initial_state);
  POINTER(final_state);
  POINTER(state_indices);
  POINTER(workspace);
  POINTER(stream);
#undef POINTER

  py::class_<Library>(m, "Library")
      .def_readonly("rung", &Library::rung)
      .def("declines",
           [](const Library &l, const kda_args &a) -> py::object {
             const char *reason = l.declines(&a);
             return reason ? py::cast(reason) : py::none();
           })
      .def("workspace_bytes", [](const Library &l, const kda_args &a) { return l.workspace_bytes(&a); })
      .def("forward", &Library::run);

  m.def("load", [](const std::string &path, const std::string &rung) { return Library(path, rung); });
}
