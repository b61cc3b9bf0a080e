package tests

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGeneratedFiles makes all generated files again in a copy of the repository
// and compares them byte for byte with the committed ones.
func TestGeneratedFiles(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dir := t.TempDir()
	before := copySources(t, dir)
	if len(before) < 8 {
		t.Fatalf("only %d generated files are known: the test looks for the wrong names", len(before))
	}
	for name := range before {
		if strings.HasSuffix(name, ".o") {
			os.Remove(filepath.Join(dir, name)) // Go code embeds the object: it is made first
		}
	}
	for _, step := range [][]string{{"go", "generate", "./..."}, {"tests/protoc.sh"}} {
		cmd := exec.CommandContext(ctx, step[0], step[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", step, err, out)
		}
	}
	for name, want := range before {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%s is committed, but nothing makes it: %v", name, err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s (%d bytes) differs from what is made of its source (%d bytes): run make generate and commit", name, len(want), len(got))
		}
	}
}

// copySources copies what the repository holds and returns the generated files.
func copySources(t *testing.T, to string) map[string][]byte {
	t.Helper()
	generated := map[string][]byte{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		switch {
		case name == ".git" && !d.IsDir():
			return nil // of a second worktree
		case name == ".git" || name == "bin" || name == "out":
			return filepath.SkipDir
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if isGenerated(name, b) {
			generated[name] = b
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), b, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
	return generated
}

func isGenerated(name string, content []byte) bool {
	head, _, _ := bytes.Cut(content, []byte("\npackage "))
	return strings.HasSuffix(name, "_bpfel.o") || strings.HasSuffix(name, ".go") &&
		(bytes.Contains(head, []byte("DO NOT EDIT")) || bytes.HasPrefix(content, []byte("// Code generated")))
}
