package swap

import (
	"context"
	"errors"
	"slices"
	"sort"
	"strings"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"replug/directory/store"
)

// memory is etcd's key-value part in memory, as far as package store uses it, so
// that a test can run in a synctest bubble. TestScenariosOnEtcd holds it to the
// real one. It can be down, and it can lose the answer to a commit.
type memory struct {
	clientv3.KV // nil: what is not here is not used

	mu      sync.Mutex
	rev     int64
	rows    map[string]*mvccpb.KeyValue
	down    bool
	lose    int      // answers of writes to lose, though they were made
	refuse  int      // writes that fail, and are not made
	most    int      // rows that a transaction may write; 0: any number
	commits []string // keys written by each transaction
	after   func()   // called after each commit, outside the lock
	onWrite func()   // called with each commit, inside it
	dead    bool     // for the present leader, which is to be killed
}

var errDown = errors.New("test: no store")

func newMemory() *memory { return &memory{rev: 4, rows: map[string]*mvccpb.KeyValue{}} }

func (m *memory) store() *store.Store {
	c := clientv3.NewCtxClient(context.Background())
	c.KV = m
	return store.New(c)
}

// peek is a store for a test's own eyes: it is never down.
func (m *memory) peek() *store.Store {
	c := clientv3.NewCtxClient(context.Background())
	c.KV = peeking{m}
	return store.New(c)
}

type peeking struct{ *memory }

func (p peeking) Get(_ context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.read(clientv3.OpGet(key, opts...)), nil
}

func (m *memory) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down || m.dead || ctx.Err() != nil {
		return nil, errDown
	}
	return m.read(clientv3.OpGet(key, opts...)), nil
}

func (m *memory) read(op clientv3.Op) *clientv3.GetResponse {
	r := &clientv3.GetResponse{Header: &pb.ResponseHeader{Revision: m.rev}}
	key, end := string(op.KeyBytes()), string(op.RangeBytes())
	for k, kv := range m.rows {
		if k == key || end != "" && k >= key && k < end {
			r.Kvs = append(r.Kvs, kv)
		}
	}
	sort.Slice(r.Kvs, func(i, j int) bool { return string(r.Kvs[i].Key) < string(r.Kvs[j].Key) })
	r.Count = int64(len(r.Kvs))
	return r
}

func (m *memory) Txn(ctx context.Context) clientv3.Txn { return &memoryTxn{m: m, ctx: ctx} }

type memoryTxn struct {
	m         *memory
	ctx       context.Context
	conds     []clientv3.Cmp
	then, els []clientv3.Op
}

func (t *memoryTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.conds = c; return t }
func (t *memoryTxn) Then(o ...clientv3.Op) clientv3.Txn { t.then = o; return t }
func (t *memoryTxn) Else(o ...clientv3.Op) clientv3.Txn { t.els = o; return t }

func (t *memoryTxn) Commit() (*clientv3.TxnResponse, error) {
	r, err := t.commit()
	if after := t.m.after; err == nil && r.Succeeded && after != nil {
		after()
	}
	return r, err
}

func (t *memoryTxn) commit() (*clientv3.TxnResponse, error) {
	m := t.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down || m.dead || t.ctx.Err() != nil {
		return nil, errDown
	}
	r := &clientv3.TxnResponse{Header: &pb.ResponseHeader{Revision: m.rev}, Succeeded: !slices.ContainsFunc(t.conds, m.differs)}
	if !r.Succeeded {
		for _, op := range t.els {
			g := m.read(op)
			r.Responses = append(r.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{
				ResponseRange: &pb.RangeResponse{Count: g.Count}}})
		}
		return r, nil
	}
	if m.refuse > 0 {
		m.refuse--
		return nil, errDown
	}
	if m.most > 0 && len(t.then) > m.most {
		return nil, rpctypes.ErrTooManyOps
	}
	keys, err := m.apply(t.then)
	if err != nil {
		return nil, err
	}
	r.Header.Revision = m.rev
	m.commits = append(m.commits, strings.Join(keys, " "))
	if m.onWrite != nil {
		m.onWrite()
	}
	if m.lose > 0 {
		m.lose--
		return nil, errDown
	}
	return r, nil
}

// revive lets the next leader at the store, unless it is down for all.
func (m *memory) revive() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.down {
		m.dead = false
	}
	return !m.down
}

func (m *memory) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

func (m *memory) setDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

// differs reports whether a condition does not hold.
func (m *memory) differs(c clientv3.Cmp) bool {
	cmp := c.GetCompare()
	var create, mod int64
	if kv := m.rows[string(cmp.Key)]; kv != nil {
		create, mod = kv.CreateRevision, kv.ModRevision
	}
	have, want := create, cmp.GetCreateRevision()
	if cmp.Target == pb.Compare_MOD {
		have, want = mod, cmp.GetModRevision()
	}
	if cmp.Result == pb.Compare_GREATER {
		return have <= want
	}
	return have != want
}

// apply makes all writes at one revision. Like etcd it refuses a key written twice.
func (m *memory) apply(ops []clientv3.Op) ([]string, error) {
	var keys []string
	for _, op := range ops {
		if k := string(op.KeyBytes()); slices.Contains(keys, k) {
			return nil, errors.New("test: duplicate key in transaction: " + k)
		}
		keys = append(keys, string(op.KeyBytes()))
	}
	m.rev++
	for _, op := range ops {
		k := string(op.KeyBytes())
		if op.IsDelete() {
			delete(m.rows, k)
			continue
		}
		kv := &mvccpb.KeyValue{Key: []byte(k), Value: op.ValueBytes(), CreateRevision: m.rev, ModRevision: m.rev}
		if old := m.rows[k]; old != nil {
			kv.CreateRevision = old.CreateRevision
		}
		m.rows[k] = kv
	}
	return keys, nil
}
