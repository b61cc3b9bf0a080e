package control

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"replug/control/compute"
	"replug/control/group"
	"replug/control/network"
	"replug/control/pool"
	"replug/control/resource"
	"replug/control/service"
	"replug/control/storage"
	"replug/control/swap"
	"replug/directory/pki"
	"replug/directory/server"
	"replug/directory/store"
)

// wireCodes is the one place where errors become codes. The first that matches
// counts, so what is more special stands higher.
var wireCodes = []struct {
	err  error
	code codes.Code
}{
	{pki.ErrUnauthenticated, codes.Unauthenticated},
	{ErrDenied, codes.PermissionDenied},
	{ErrStandby, codes.Unavailable},
	{swap.ErrStopped, codes.Unavailable},
	{store.ErrNoSpace, codes.ResourceExhausted},
	{store.ErrUnavailable, codes.Unavailable},
	{store.ErrFenced, codes.Unavailable},
	{store.ErrConflict, codes.Aborted},

	{ErrRequest, codes.AlreadyExists},
	{swap.ErrRequest, codes.AlreadyExists},
	{network.ErrExists, codes.AlreadyExists},
	{group.ErrExists, codes.AlreadyExists},
	{service.ErrExists, codes.AlreadyExists},
	{compute.ErrExists, codes.AlreadyExists},
	{resource.ErrExists, codes.AlreadyExists},

	{ErrInvalid, codes.InvalidArgument},
	{network.ErrInvalid, codes.InvalidArgument},
	{network.ErrOutside, codes.InvalidArgument},
	{network.ErrFamily, codes.InvalidArgument},
	{group.ErrInvalid, codes.InvalidArgument},
	{service.ErrInvalid, codes.InvalidArgument},
	{compute.ErrInvalid, codes.InvalidArgument},
	{storage.ErrInvalid, codes.InvalidArgument},
	{pool.ErrInvalid, codes.InvalidArgument},
	{swap.ErrInvalid, codes.InvalidArgument},
	{resource.ErrReserved, codes.InvalidArgument},

	{store.ErrTooLarge, codes.ResourceExhausted},
	{network.ErrExhausted, codes.ResourceExhausted},
	{group.ErrExhausted, codes.ResourceExhausted},
	{service.ErrExhausted, codes.ResourceExhausted},
	{compute.ErrExhausted, codes.ResourceExhausted},
	{pool.ErrBusy, codes.ResourceExhausted},
	{server.ErrBusy, codes.ResourceExhausted},

	{ErrNotSo, codes.FailedPrecondition},
	{server.ErrNoHost, codes.FailedPrecondition},
	{server.ErrSilent, codes.FailedPrecondition},
	{server.ErrRefused, codes.FailedPrecondition},
	{network.ErrTaken, codes.FailedPrecondition},
	{network.ErrInUse, codes.FailedPrecondition},
	{group.ErrInUse, codes.FailedPrecondition},
	{compute.ErrInUse, codes.FailedPrecondition},
	{compute.ErrNotSo, codes.FailedPrecondition},
	{resource.ErrInUse, codes.FailedPrecondition},
	{swap.ErrBusy, codes.FailedPrecondition},
	{swap.ErrEnded, codes.FailedPrecondition},
	{swap.ErrNotAsked, codes.FailedPrecondition},

	{ErrMissing, codes.NotFound},
	{network.ErrNotFound, codes.NotFound},
	{group.ErrNotFound, codes.NotFound},
	{service.ErrNotFound, codes.NotFound},
	{compute.ErrNotFound, codes.NotFound},
	{pool.ErrNotFound, codes.NotFound},
	{resource.ErrNotFound, codes.NotFound},
	{store.ErrNotFound, codes.NotFound},

	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// onWire returns err as the API tells it.
func onWire(err error) error {
	if err == nil {
		return nil
	}
	for _, w := range wireCodes {
		if errors.Is(err, w.err) {
			return status.Error(w.code, text(err, w.code))
		}
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Internal, err.Error())
}

func text(err error, code codes.Code) string {
	s := strings.ReplaceAll(err.Error(), "\n", "; ")
	switch {
	case code == codes.Aborted:
		return s + ": try again"
	case code == codes.Unavailable && errors.Is(err, store.ErrUnavailable):
		return s + ": nothing is known to have changed; traffic goes on; try again with the same request id"
	}
	return s
}
