package control

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"replug/directory/store"
)

// rows returns all rows but those that say nothing of the world: the leader's,
// what is remembered of requests, numbers set aside.
func (w *world) rows() map[string]string {
	w.t.Helper()
	r, err := w.db.Client().Get(w.ctx, store.Root, clientv3.WithPrefix())
	if err != nil {
		w.t.Fatal(err)
	}
	rows := make(map[string]string)
	for _, kv := range r.Kvs {
		k := string(kv.Key)
		if !under(k, store.Leader, store.Requests, store.Counters+"mac", store.Counters+"vm", store.Counters+"claim") {
			rows[k] = string(kv.Value)
		}
	}
	return rows
}

func under(key string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) })
}

// differ says what differs between two sets of rows, or "".
func differ(before, after map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if before[k] != after[k] {
			out = append(out, fmt.Sprintf("%s: %q, was %q", k, after[k], before[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if _, ok := after[k]; !ok {
			out = append(out, k+" is gone")
		}
	}
	return strings.Join(out, "\n")
}
