package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
)

// An apt gets packages of one architecture (Debian's name of it, which is Go's).
type apt struct {
	arch    string
	options []string
}

var dependsLine = regexp.MustCompile(`(?m)^\s*(?:Pre)?Depends: (linux-(?:image|modules)-[0-9]\S*)`)

// aptOf asks for another architecture's packages by lists of their own, below
// cache: nothing that this machine has installed or trusts is changed.
func aptOf(arch, cache string) (apt, error) {
	a := apt{arch: arch, options: []string{"-q", "-o", "APT::Sandbox::User=root"}}
	if arch == runtime.GOARCH {
		return a, nil
	}
	dir := filepath.Join(cache, "apt-"+arch)
	for option, value := range map[string]string{
		"APT::Architecture": arch, "APT::Architectures": arch, "Dir::State::status": os.DevNull,
		"Dir::State::lists": filepath.Join(dir, "lists"), "Dir::Cache": dir,
	} {
		a.options = append(a.options, "-o", option+"="+value)
	}
	return a, errors.Join(os.MkdirAll(filepath.Join(dir, "lists", "partial"), 0o755), os.MkdirAll(filepath.Join(dir, "archives", "partial"), 0o755))
}

func (a apt) run(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	return output(ctx, dir, slices.Concat([]string{program}, a.options, args)...)
}

// update refreshes lists that are old or empty.
func (a apt) update(ctx context.Context) error {
	_, err := a.run(ctx, "/", "apt-get", "update")
	return err
}

// download puts packages into dir and returns their files.
func (a apt) download(ctx context.Context, dir string, names ...string) ([]string, error) {
	if _, err := a.run(ctx, dir, "apt-get", append([]string{"download"}, names...)...); err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(dir, "*.deb"))
}

// kernelOf follows a meta package to the images and modules behind it.
func (a apt) kernelOf(ctx context.Context, meta string) ([]string, error) {
	var names []string
	for todo := []string{meta}; len(todo) > 0; todo = todo[1:] {
		out, err := a.run(ctx, "/", "apt-cache", "depends", todo[0])
		if err != nil {
			return nil, err
		}
		for _, m := range dependsLine.FindAllStringSubmatch(string(out), -1) {
			if !slices.Contains(names, m[1]) {
				names, todo = append(names, m[1]), append(todo, m[1])
			}
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s is unknown to apt", meta)
	}
	return names, nil
}
