package control

import (
	"bufio"
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
	"replug/directory/store"
	"replug/directory/vnet"
)

type hostsAPI struct {
	pb.UnimplementedHostsServer
	s *Server
}

func (hostsAPI) ListHosts(ctx context.Context, _ *pb.ListHostsRequest) (*pb.ListHostsResponse, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	rows, _, err := store.List[vnet.HostInfo](ctx, c.store, store.Hosts)
	if err != nil {
		return nil, err
	}
	used, err := c.vms.UsedRoom(ctx)
	if err != nil {
		return nil, err
	}
	ports, _, err := store.List[string](ctx, c.store, store.PortIDs)
	count := make(map[string]int)
	for _, p := range ports {
		host, _ := store.Split(store.PortIDs, p.Key)
		count[host]++
	}
	r := &pb.ListHostsResponse{}
	for _, row := range rows {
		h := hostTo(&row.Value)
		h.PortsUsed, h.MemoryUsedMib = int32(count[h.Name]), int32(used[h.Name].Memory)
		here, since := c.s.up.get(h.Name)
		h.Connected, h.Since = here, timeTo(since)
		r.Hosts = append(r.Hosts, h)
	}
	return r, err
}

func hostTo(h *vnet.HostInfo) *pb.Host {
	out := &pb.Host{
		Name: h.Name, Address: h.Address.String(), PaPrefix: h.PAPrefix.String(), Mtu: uint32(h.MTU), Ports: int32(h.Ports),
		MemoryMib: int32(h.Memory), Images: h.Images, Labels: h.Labels, Version: h.Version,
	}
	for image, p := range h.Personalities {
		if out.Personalities == nil {
			out.Personalities = make(map[string]string)
		}
		out.Personalities[image] = string(p)
	}
	return out
}

func (hostsAPI) DeleteHost(ctx context.Context, q *pb.DeleteHostRequest) (*pb.DeleteHostResponse, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	_, err := c.once(ctx, q, func(txn *store.Txn) (string, error) { return q.Name, c.deleteHost(ctx, q.Name, txn) })
	return &pb.DeleteHostResponse{}, err
}

type adminAPI struct {
	pb.UnimplementedAdminServer
	s *Server
}

// chunk is how much of a backup is sent in one message.
const chunk = 256 << 10

func (a adminAPI) Backup(_ *pb.BackupRequest, ss grpc.ServerStreamingServer[pb.BackupChunk]) error {
	c := callerOf(ss.Context())
	if err := c.operator(); err != nil {
		return err
	}
	if a.s.cfg.Backup == nil {
		return fmt.Errorf("backup: %w: this server's store is backed up with etcd's own tools", ErrNotSo)
	}
	w := bufio.NewWriterSize(chunks{ss}, chunk)
	if err := a.s.cfg.Backup(ss.Context(), w); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return w.Flush()
}

type chunks struct {
	ss grpc.ServerStreamingServer[pb.BackupChunk]
}

// Write sends b as one message. gRPC has taken it over when it returns.
func (c chunks) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(len(rest), chunk)
		if err := c.ss.Send(&pb.BackupChunk{Data: rest[:n]}); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(b), nil
}

func (a adminAPI) GetCluster(ctx context.Context, _ *pb.GetClusterRequest) (*pb.ClusterInfo, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	r, err := c.store.Client().Get(ctx, store.Cluster, clientv3.WithCountOnly())
	if err != nil {
		return nil, fmt.Errorf("read the cluster: %w: %w", store.ErrUnavailable, err)
	}
	return &pb.ClusterInfo{
		Id: a.s.cfg.Cluster, Era: uint32(a.s.cfg.Era), Revision: r.Header.Revision,
		Leader: a.s.self(), StoreTxns: c.store.Txns(),
	}, nil
}
