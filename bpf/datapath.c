//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The door: the hooks, in the order a frame meets them, and nothing else. */
#include "from_vm.c"
#include "from_nic.c"
#include "from_wire.c"
#include "from_vxlan.c"
#include "from_host.c"
#include "refresh.c"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
