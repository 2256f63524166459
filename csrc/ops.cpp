// The operators of torch.ops.atss. Kernels register themselves in cpu/*.cpp and cuda/*.cu; autograd and fake
// (shape) kernels are in atss_core/layers.
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(atss, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold) -> Tensor");
  m.def(
      "batched_nms_padded(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold, int max_detections)"
      " -> (Tensor, Tensor)");
  m.def("sigmoid_focal_loss(Tensor logits, Tensor labels, float gamma, float alpha) -> Tensor");
  m.def(
      "sigmoid_focal_loss_backward(Tensor grad, Tensor logits, Tensor labels, float gamma, float alpha)"
      " -> Tensor");
  m.def(
      "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[2] stride,"
      " int[2] padding, int[2] dilation) -> Tensor");
  m.def(
      "deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask,"
      " int[2] stride, int[2] padding, int[2] dilation, bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "box_vote(Tensor boxes, Tensor scores, Tensor labels, float threshold, bool soft, float min_score)"
      " -> (Tensor, Tensor, Tensor)");
}

#define ATSS_TO_STRING_(x) #x
#define ATSS_TO_STRING(x) ATSS_TO_STRING_(x)

// The module has no functions: importing it loads the library, and that registers the operators. It tells which PyTorch
// it was built for, because with another one it may load and misbehave.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", "Compiled operators of torch.ops.atss", -1,
      nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module && PyModule_AddStringConstant(module, "torch_version", ATSS_TO_STRING(ATSS_TORCH)) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
