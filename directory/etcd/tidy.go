package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"replug/directory/store"
)

// The store keeps the history of its rows: the last keptRevisions, so that a server
// which begins to lead takes hosts up where they were. That says nothing of bytes,
// since a row may be short or have a guest's files in it: once the database has grown
// by a part of its quota, all history goes. Hosts don't notice; who comes back from
// further ago gets everything anew.
const (
	keptRevisions = 20_000
	compactEvery  = time.Minute
	grownParts    = 8  // of the quota
	roomPercent   = 85 // of the quota, below which there is room for writes again
	defaultQuota  = 2 << 30
	tidyWithin    = 5 * time.Minute // a database of some GiB is written anew in less
)

// A Usage is how large the database is: of a cluster, its largest member.
type Usage struct {
	Bytes    int64 // of the file
	InUse    int64 // of these; the rest is free pages, which are used again before the file grows
	Quota    int64 // that etcd lets the file grow to
	Full     bool  // the quota was reached: etcd refuses writes until somebody says that there is room
	Revision int64
}

// Usage asks all members.
func (e *Etcd) Usage(ctx context.Context) (Usage, error) {
	var u Usage
	for _, at := range e.members() {
		s, err := e.client.Status(ctx, at)
		if err != nil {
			return Usage{}, fmt.Errorf("ask etcd %s for its size: %w", at, err)
		}
		quota := s.DbSizeQuota
		if quota <= 0 { // one that is older than the figure
			quota = defaultQuota
		}
		if u.Quota == 0 || quota < u.Quota {
			u.Quota = quota
		}
		u.Bytes, u.InUse, u.Revision = max(u.Bytes, s.DbSize), max(u.InUse, s.DbSizeInUse), max(u.Revision, s.Header.Revision)
	}
	alarms, err := e.client.AlarmList(ctx)
	if err != nil {
		return Usage{}, fmt.Errorf("ask etcd for its alarms: %w", err)
	}
	for _, a := range alarms.Alarms {
		u.Full = u.Full || a.Alarm == pb.AlarmType_NOSPACE
	}
	return u, nil
}

// members are what maintenance calls name; the embedded one is behind the client.
func (e *Etcd) members() []string {
	if at := e.client.Endpoints(); len(at) > 0 {
		return at
	}
	return []string{""}
}

// Tidy keeps the database below its quota, and makes room in one that is full: the
// leader calls it every second or so, and who can't lead because of it. It returns
// [store.ErrNoSpace] when what is live fills the quota.
func (e *Etcd) Tidy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tidyWithin)
	defer cancel()
	e.tidying.Lock()
	defer e.tidying.Unlock()
	u, err := e.Usage(ctx)
	if err != nil {
		return err
	}
	e.floor = min(e.floor, u.InUse)
	switch {
	case u.Full || u.InUse-e.floor > u.Quota/grownParts:
		if err := e.forget(ctx, u.Revision, u.Full); err != nil {
			return err
		}
		if u, err = e.Usage(ctx); err != nil {
			return err
		}
		e.floor = u.InUse
	case time.Since(e.compacted) >= compactEvery:
		if err := e.forget(ctx, u.Revision-keptRevisions, false); err != nil {
			return err
		}
	}
	return e.shrink(ctx, u)
}

// forget removes the history before a revision: later, while a backup reads it,
// unless there is no other way.
func (e *Etcd) forget(ctx context.Context, revision int64, must bool) error {
	if e.history.TryLock() {
		defer e.history.Unlock()
	} else if !must {
		return nil
	}
	e.compacted = time.Now()
	if revision <= 0 {
		return nil
	}
	_, err := e.client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact the store to revision %d: %w", revision, err)
	}
	return nil
}

// shrink writes a database anew that is large and mostly empty, and lets writes go on
// that were refused. A member does nothing else meanwhile, so it is for these only.
func (e *Etcd) shrink(ctx context.Context, u Usage) error {
	room := u.InUse < u.Quota*roomPercent/100
	if u.Bytes > u.Quota/2 && u.InUse < u.Bytes/2 || u.Full && room {
		if err := e.defragment(ctx, u); err != nil {
			return err
		}
	}
	switch {
	case !u.Full:
		return nil
	case !room:
		return fmt.Errorf("%d of %d MiB are live: %w", u.InUse>>20, u.Quota>>20, store.ErrNoSpace)
	}
	alarms, err := e.client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("ask etcd for its alarms: %w", err)
	}
	for _, a := range alarms.Alarms {
		if a.Alarm != pb.AlarmType_NOSPACE {
			continue
		}
		if _, err := e.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return fmt.Errorf("tell etcd that there is room again: %w", err)
		}
	}
	e.config.Log.Warn("the store was full and has room again", "bytes_before", u.Bytes, "bytes_live", u.InUse, "quota", u.Quota)
	return nil
}

// defragment writes the members' databases anew, one after another.
func (e *Etcd) defragment(ctx context.Context, u Usage) error {
	c := e.config
	c.MinFree += u.InUse // the new file stands beside the old one for a while
	if err := e.room(c); err != nil {
		return fmt.Errorf("defragment the store: %w", err)
	}
	for _, at := range e.members() {
		if err := e.rewrite(ctx, at); err != nil {
			return fmt.Errorf("defragment the store %s: %w", at, err)
		}
	}
	e.config.Log.Info("store defragmented", "bytes_before", u.Bytes, "bytes_live", u.InUse, "quota", u.Quota)
	return nil
}
