package lab

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

//go:embed debian guest/exec.sh
var debianFiles embed.FS

// BuildDebian makes the stock Debian guest, of Debian's packages alone, and returns
// its directory as [BuildGuest] does. It takes about a minute and some 400 MB; the
// cache keeps it until its recipe changes. Its personality is cloud-init.
func BuildDebian(ctx context.Context) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	recipe, sum, err := unpackRecipe(cache)
	if err != nil {
		return "", fmt.Errorf("Debian guest: %w", err)
	}
	defer os.RemoveAll(recipe)
	dir := filepath.Join(cache, "debian-"+sum)
	if now := time.Now(); os.Chtimes(dir, now, now) == nil {
		return dir, nil
	}
	prune(cache, "debian", 7*24*time.Hour)
	draft, err := os.MkdirTemp(cache, ".debian-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(draft)
	if _, err := output(ctx, draft, "bash", filepath.Join(recipe, "debian/build.sh"), draft); err != nil {
		return "", fmt.Errorf("build the Debian guest (`make setup-test` installs what it needs): %w", err)
	}
	if err := errors.Join(os.Chmod(draft, 0o755), os.Rename(draft, dir)); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

// unpackRecipe writes the recipe into a directory of its own and returns what names
// its content.
func unpackRecipe(cache string) (dir, sum string, err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", "", err
	}
	if dir, err = os.MkdirTemp(cache, ".recipe-"); err != nil {
		return "", "", err
	}
	hash := sha256.New()
	err = fs.WalkDir(debianFiles, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return errors.Join(err, os.MkdirAll(filepath.Join(dir, name), 0o755))
		}
		b, err := debianFiles.ReadFile(name)
		fmt.Fprintf(hash, "%s %d\n%s", name, len(b), b)
		return errors.Join(err, os.WriteFile(filepath.Join(dir, name), b, 0o644))
	})
	return dir, hex.EncodeToString(hash.Sum(nil)[:8]), err
}
