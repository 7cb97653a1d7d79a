# Bonus task: COCO with one object per image. Own dataset, own network head, own display.
import os, sys, copy, time, random
import numpy as np
import torch, torchvision
import torch.nn as nn
import torch.nn.functional as F
import torchvision.transforms as tvt
from torch.utils.data import Dataset, DataLoader
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
from PIL import Image
from SegStudio import SegStudio

random.seed(5); np.random.seed(5); torch.manual_seed(5)
os.makedirs("coco/images", exist_ok=True); os.makedirs("coco/masks", exist_ok=True)
for k in range(12):   # stands in for the download
    im = np.random.randint(0, 60, (96, 128, 3), dtype=np.uint8)
    m = np.zeros((96, 128), dtype=np.uint8)
    y, x, h, w = np.random.randint(5, 40), np.random.randint(5, 60), 40, 50
    m[y:y+h, x:x+w] = 1
    im[m == 1] = np.random.randint(120, 255, 3)
    Image.fromarray(im).save("coco/images/%03d.jpg" % k)
    np.save("coco/masks/%03d.npy" % k, m)

class CocoSegDataset(Dataset):
    def __init__(self, root, size=64):
        super().__init__()
        self.root, self.size = root, size
        self.files = sorted(os.listdir(os.path.join(root, "images")))
        self.transform = tvt.Compose([tvt.Resize((size, size)), tvt.ToTensor(), tvt.Normalize((0.5,) * 3, (0.5,) * 3)])
    def __len__(self):
        return len(self.files)
    def __getitem__(self, idx):
        im = Image.open(os.path.join(self.root, "images", self.files[idx])).convert("RGB")
        mask = np.load(os.path.join(self.root, "masks", self.files[idx].replace("jpg", "npy"))) * 255
        mask = np.array(Image.fromarray(mask).resize((self.size, self.size), Image.NEAREST))
        return {'image': self.transform(im), 'mask_tensor': torch.as_tensor(mask, dtype=torch.float32).unsqueeze(0),
                'bbox_tensor': torch.zeros(1, 1, 4)}

class CocoUnet(SegStudio.SemanticSegmentation.mUnet):
    def __init__(self, skip_connections=True, depth=4):
        super(CocoUnet, self).__init__(skip_connections, depth)
        self.conv_out = nn.ConvTranspose2d(64, 1, 3, stride=2, dilation=2, output_padding=1, padding=2)

class CocoSegmentation(SegStudio.SemanticSegmentation):
    class SegmentationLossDice(nn.Module):
        def __init__(self, batch_size):
            super().__init__()
            self.batch_size = batch_size
        def forward(self, output, mask):
            loss = torch.zeros(1, requires_grad=True)
            for i in range(output.shape[0]):
                num = torch.sum(output[i] * mask[i])
                den = torch.sum(output[i] ** 2) + torch.sum(mask[i] ** 2)
                loss = loss + (1 - (2 * num + 1e-6) / (den + 1e-6))
            return loss.sum() / self.batch_size
    def run_code_for_training_for_semantic_segmentation(self, net, criterion, tag):
        net = net.to(self.dl_studio.device)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99))
        losses = []
        for epoch in range(self.dl_studio.epochs):
            for i, data in enumerate(self.train_dataloader):
                im, mask = data['image'].to(self.dl_studio.device), data['mask_tensor'].to(self.dl_studio.device)
                optimizer.zero_grad()
                loss = criterion(net(im), mask)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            print("epoch", epoch, "%.3f" % np.mean(losses[-3:]))
        self.dl_studio.path_saved_model = "./coco_%s.pth" % tag
        self.save_model(net)
        return losses
    def run_code_for_testing_semantic_segmentation(self, net):
        net.load_state_dict(torch.load(self.dl_studio.path_saved_model))
        net.eval()
        with torch.no_grad():
            for i, data in enumerate(self.test_dataloader):
                out = net(data['image'].to(self.dl_studio.device)).cpu()
                im = data['image'] * 0.5 + 0.5
                pred = torch.where(out > 127, 255., 0.)
                rows = torch.cat([im, data['mask_tensor'].expand(-1, 3, -1, -1) / 255, pred.expand(-1, 3, -1, -1) / 255])
                self.dl_studio.display_tensor_as_image(
                    torchvision.utils.make_grid(rows, nrow=len(im), normalize=True, padding=2, pad_value=10), "test %d" % i)
                self.dl_studio.display_tensor_as_image(data['image'][0])
                fig, ax = plt.subplots(1, 3)
                ax[0].imshow(im[0].permute(1, 2, 0)); ax[1].imshow(data['mask_tensor'][0, 0], cmap='gray'); ax[2].imshow(out[0, 0], cmap='gray')
                plt.savefig("panel_%d.png" % i); plt.close(fig)

dls = SegStudio(dataroot="./coco/", image_size=[64, 64], path_saved_model="./coco.pth", momentum=0.9,
                learning_rate=1e-4, epochs=4, batch_size=4, classes=('cake', 'dog', 'motorcycle'), use_gpu=True)
seg = CocoSegmentation(dl_studio=dls, max_num_objects=1)
full = CocoSegDataset("coco")
train, test = torch.utils.data.random_split(full, [8, 4])
seg.train_dataloader = DataLoader(train, batch_size=4, shuffle=True, num_workers=0)
seg.test_dataloader = DataLoader(test, batch_size=4, shuffle=False, num_workers=0)
net = CocoUnet(depth=4)
assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)
seg.run_code_for_training_for_semantic_segmentation(copy.deepcopy(net), nn.L1Loss(), "mae")
seg.run_code_for_training_for_semantic_segmentation(net, seg.SegmentationLossDice(4), "dice")
seg.run_code_for_testing_semantic_segmentation(net)
torch.save(net, "coco_whole.pth")
SegStudio.SemanticSegmentation.run_code_for_testing_semantic_segmentation(seg, net)
print("all done")
