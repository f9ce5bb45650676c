/* The pybind11 module: kda_args as a Python object, and rungs loaded by path and called through kda_lab.h.
 *
 * It links neither PyTorch nor CUDA. Tensors arrive as (address, batch stride, token stride, head
 * stride, dtype) and addresses as integers; kda_lab/native/call.py makes them from tensors.
 */
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "kda_lab.h"

namespace py = pybind11;

namespace {

/* Takes the values of a Python tuple one after another. */
class Reader {
  py::tuple values;
  size_t at = 0;

 public:
  explicit Reader(py::tuple t) : values(std::move(t)) {}

  template <class T>
  void operator()(T &field) {
    if (at == values.size()) throw py::value_error("too few values for kda_args");
    PyObject *value = PyTuple_GET_ITEM(values.ptr(), at++);
    if constexpr (std::is_floating_point_v<T>)
      field = static_cast<T>(PyFloat_AsDouble(value));
    else if constexpr (std::is_pointer_v<T>)
      field = reinterpret_cast<T>(static_cast<uintptr_t>(PyLong_AsLongLong(value)));
    else
      field = static_cast<T>(PyLong_AsLongLong(value));
    if (PyErr_Occurred()) throw py::error_already_set();
  }
  void operator()(kda_tensor &t) {
    (*this)(t.data);
    (*this)(t.stride_batch);
    (*this)(t.stride_token);
    (*this)(t.stride_head);
    (*this)(t.dtype);
  }
  void end() const {
    if (at != values.size()) throw py::value_error("too many values for kda_args");
  }
};

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

  /* Runs `like` with other addresses, in the order of `Prepared` in call.py. */
  void run_again(const kda_args &like, py::tuple addresses) const {
    kda_args a = like;
    Reader read(std::move(addresses));
    read(a.q.data), read(a.k.data), read(a.v.data), read(a.g.data), read(a.beta.data);
    read(a.A_log), read(a.dt_bias), read(a.cu_seqlens), read(a.initial_state);
    read(a.o.data), read(a.final_state), read(a.workspace), read(a.stream);
    read.end();
    run(a);
  }
};

/* What a call brings, in the order of `_Arguments` in call.py; outputs and workspace are set afterwards. */
kda_args arguments(py::tuple values) {
  kda_args a{};
  a.abi_version = KDA_ABI_VERSION;
  a.struct_bytes = sizeof a;
  Reader read(std::move(values));
  read(a.batch), read(a.tokens), read(a.heads_qk), read(a.dim_k);
  read(a.heads_v), read(a.dim_v), read(a.sequences);
  read(a.q), read(a.k), read(a.v), read(a.g), read(a.beta);
  read(a.gate), read(a.A_log), read(a.dt_bias), read(a.lower_bound);
  read(a.beta_kind), read(a.l2norm), read(a.scale);
  read(a.cu_seqlens_bits), read(a.cu_seqlens);
  read(a.initial_state), read(a.state_dtype), read(a.state_v_first);
  read(a.stream), read(a.threads);
  read.end();
  return a;
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
  args.def(py::init(&arguments));
  args.def_property("o", nullptr, [](kda_args &a, py::tuple t) {
    Reader read(std::move(t));
    read(a.o), read.end();
  });
  pointer(args, "initial_state", &kda_args::initial_state);
  pointer(args, "final_state", &kda_args::final_state);
  pointer(args, "state_indices", &kda_args::state_indices);
  pointer(args, "workspace", &kda_args::workspace);
#define FIELD(name) args.def_readwrite(#name, &kda_args::name)
  FIELD(abi_version);
  FIELD(struct_bytes);
  FIELD(state_dtype);
  FIELD(state_slots);
  FIELD(workspace_bytes);
#undef FIELD

  py::class_<Library>(m, "Library")
      .def_readonly("rung", &Library::rung)
      .def("declines",
           [](const Library &l, const kda_args &a) -> py::object {
             const char *reason = l.declines(&a);
             return reason ? py::cast(reason) : py::none();
           })
      .def("workspace_bytes", [](const Library &l, const kda_args &a) { return l.workspace_bytes(&a); })
      .def("forward", &Library::run)
      .def("forward_again", &Library::run_again);

  m.def("load", [](const std::string &path, const std::string &rung) { return Library(path, rung); });
}
